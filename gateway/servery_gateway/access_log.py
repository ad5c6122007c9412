"""Envoy's access log service: receives what Envoy tells of every call it answered."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Final

import grpc

from servery_gateway import xds_pool
from servery_gateway.extensions import (
    ALLOWED_HEADER,
    CALLER_HEADER,
    TENANT_HEADER,
    WEB_METADATA,
)
from servery_gateway.transcoding import JSON_PREFIX
from servery_gateway.usage import Bill, Call, Sums
from servery_rpc.server import Service

SERVICE: Final = "envoy.service.accesslog.v3.AccessLogService"
_MESSAGE: Final = "envoy.service.accesslog.v3.StreamAccessLogsMessage"
_RESPONSE: Final = "envoy.service.accesslog.v3.StreamAccessLogsResponse"

USAGE_HEADER: Final = "servery-usage"
"""What inference tells behind an answer, or before it over REST."""

_OK: Final = 0
_CANCELLED: Final = 1
_UNKNOWN: Final = 2
_REST: Final = "/v2"
_HTTP_CODES: Final = {
    0: 1,
    200: 0,
    400: 3,
    401: 16,
    403: 7,
    404: 5,
    408: 4,
    409: 10,
    413: 3,
    429: 8,
    499: 1,
    500: 13,
    501: 12,
    503: 14,
    504: 4,
}
"""HTTP status to `google.rpc.Code`, for calls that have no gRPC status."""

# A stream and `ModelReady` answer OK for a model that is not there.
_ANSWERED_BY: Final = (
    "/infer",
    "/ModelInfer",
    "/ModelMetadata",
    "/ModelConfig",
    "/ModelStatistics",
)


class AccessLog:
    """Receives access logs. Belongs to one event loop.

    Args:
        record: Takes in the calls.
    """

    def __init__(self, record: Callable[[Iterable[Call]], None]) -> None:
        self._record = record
        self._readers: set[asyncio.Task[None]] = set()

    @property
    def service(self) -> Service:
        """What to serve."""
        handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_unary_rpc_method_handler(
            self._stream,
            request_deserializer=xds_pool.message_class(_MESSAGE).FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )
        generic = grpc.method_handlers_generic_handler(SERVICE, {"StreamAccessLogs": handler})
        return Service(SERVICE, lambda server: server.add_generic_rpc_handlers([generic]))

    async def close(self, grace_s: float = 1.0) -> None:
        """End every stream, so that a server which drains need not wait for them.

        What an Envoy that has hung up sent before is read to its end; one that has not may have
        more to say for ever, so it has only `grace_s`.
        """
        if self._readers:
            await asyncio.wait(self._readers, timeout=grace_s)
        for reader in self._readers:
            reader.cancel()

    async def _stream(self, messages: AsyncIterator[Any], context: Any) -> Any:
        reader = asyncio.create_task(self._read(messages))
        self._readers.add(reader)
        try:
            await asyncio.wait([reader])
        finally:
            reader.cancel()
            self._readers.discard(reader)
        return xds_pool.message_class(_RESPONSE)()

    async def _read(self, messages: AsyncIterator[Any]) -> None:
        async for message in messages:
            self._record([call_of(entry) for entry in message.http_logs.log_entry])


def call_of(entry: Any) -> Call:
    """Return the call that an HTTPAccessLogEntry tells of."""
    common, request, response = entry.common_properties, entry.request, entry.response
    headers = request.request_headers
    tenant, resource = headers.get(TENANT_HEADER), headers.get(ALLOWED_HEADER, "")
    path = request.path.partition("?")[0]
    is_http = path.startswith((_REST, JSON_PREFIX)) or request.original_path
    web = common.metadata.filter_metadata.get(WEB_METADATA)
    used = _used(_told(response, web, USAGE_HEADER))
    if is_http:
        code = _HTTP_CODES.get(response.response_code.value, _UNKNOWN)
    else:
        code = _code(response, _told(response, web, "grpc-status"))
    return Call(
        id=_identity(common, request),
        bill=Bill(
            minute=common.start_time.seconds // 60,
            tenant=f"tenants/{tenant}" if tenant else "",
            api_key=headers.get(CALLER_HEADER, ""),
            model=resource if "/models/" in resource else "",
            code=code,
            version=used.get("version", 0),
        ),
        reached_server=bool(common.upstream_cluster) and bool(response.response_code),
        model_answered=code == _OK and path.endswith(_ANSWERED_BY),
        sums=Sums(
            requests=1,
            rows=used.get("rows", 0),
            compute_ns=used.get("compute_ns", 0),
            request_bytes=request.request_body_bytes,
            response_bytes=response.response_body_bytes,
            duration_us=common.duration.seconds * 1_000_000 + common.duration.nanos // 1000,
        ),
    )


def _identity(common: Any, request: Any) -> bytes:
    """What no two calls share. Not the request id alone: callers choose that, also twice."""
    peer = common.downstream_remote_address.socket_address
    start = common.start_time
    parts = (start.seconds, start.nanos, peer.address, peer.port_value, request.request_id)
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()


def _used(told: str) -> Mapping[str, int]:
    """What inference says the call used, such as `version=3;rows=8;compute_ns=51000`."""
    parts = (part.partition("=") for part in told.split(";"))
    return {key: int(value) for key, _, value in parts if value.isdecimal()}


def _told(response: Any, web: Any, key: str) -> str:
    """The value that an answer has of `key`, behind it or before it; empty if it has none."""
    told = response.response_trailers.get(key) or response.response_headers.get(key)
    return told or (web.fields[key].string_value if web and key in web.fields else "")


def _code(response: Any, status: str) -> int:
    if status.isdecimal():
        return int(status)
    return _UNKNOWN if response.response_code.value else _CANCELLED
