"""Any server behind the gateway, which records who called."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool, message_factory

from servery.inference.pool import pool as inference_pool
from servery_gateway.methods import Method, methods
from servery_rpc.reflection import v1_pool
from servery_rpc.server import Service, serving
from servery_rpc.settings import ServerSettings


@dataclass
class Backend(grpc.GenericRpcHandler):
    """Any server behind the gateway: answers every method of an upstream and records the call.

    A method answers one default message for each request, or one if its caller does not stream.
    """

    upstream: str
    metadata: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Path to the metadata of its last call."""
    num_requests: dict[str, int] = field(default_factory=dict)
    """Path to the number of messages its last call brought."""
    time_remaining_s: dict[str, float | None] = field(default_factory=dict)
    """Path to how long its last call could take when it came; None: for ever."""
    hold: asyncio.Event | None = None
    """If set, streams stay open after their messages until it is."""

    trailing: tuple[tuple[str, str], ...] = ()
    """Metadata behind every answer."""

    def service(self, handler_call_details: Any) -> Any:
        path = handler_call_details.method
        for method in methods():
            if method.path == path and method.upstream == self.upstream:
                return self._handler(method)
        return None

    def _record(self, path: str, context: Any) -> None:
        self.metadata[path] = dict(context.invocation_metadata())
        self.time_remaining_s[path] = context.time_remaining()
        context.set_trailing_metadata(self.trailing)

    def _handler(self, method: Method) -> Any:
        _, response = message_classes(method)

        async def single(request: Any, context: Any) -> Any:
            self._record(method.path, context)
            if method.client_streaming:
                self.num_requests[method.path] = len([1 async for _ in request])
            return response()

        async def many(request: Any, context: Any) -> AsyncIterator[Any]:
            self._record(method.path, context)
            if method.client_streaming:
                async for _ in request:
                    yield response()
            else:
                yield response()
            if self.hold is not None:
                await self.hold.wait()

        kind = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.client_streaming, method.server_streaming]
        behaviour = many if method.server_streaming else single
        return kind(behaviour, None, response.SerializeToString)


def message_classes(method: Method) -> tuple[type[Any], type[Any]]:
    """The classes of a method's request and response."""
    if method.service.startswith("inference."):
        pool = inference_pool()
    elif method.service.startswith("grpc.reflection.v1."):
        pool = v1_pool()
    else:
        pool = descriptor_pool.Default()
    service = pool.FindServiceByName(method.service)
    found = service.methods_by_name[method.name]
    return (
        message_factory.GetMessageClass(found.input_type),
        message_factory.GetMessageClass(found.output_type),
    )


@asynccontextmanager
async def backend(upstream: str, socket_path: Path) -> AsyncIterator[Backend]:
    """Serve a backend, with health, on a unix socket."""
    handler = Backend(upstream)
    settings = ServerSettings(listen=f"unix:{socket_path}", drain_s=0)
    service = Service(f"test.{upstream}", lambda s: s.add_generic_rpc_handlers([handler]))
    async with serving(settings, service):
        yield handler
