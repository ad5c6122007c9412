"""What happens around every RPC: parse, count, and turn exceptions into statuses.

All four kinds of method become one shape here: bytes in, messages out. So a request that is not the
protobuf it should be is the caller's INVALID_ARGUMENT and not grpcio's INTERNAL.
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import contextvars
import inspect
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status
from prometheus_client import Counter, Histogram

from servery_rpc.errors import FieldInvalidError, ServeryError, to_status

log = logging.getLogger(__name__)

REQUEST_ID_HEADER: Final = "x-request-id"
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""The id of the RPC this code runs for: the caller's, Envoy's, or a new one."""

_HANDLED: Final = Counter("servery_grpc_requests_total", "RPCs ended", ["method", "code"])
_DURATION: Final = Histogram(
    "servery_grpc_request_duration_seconds",
    "Time from the first byte of an RPC to its status",
    ["method"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30),
)


class ServeryInterceptor(grpc.aio.ServerInterceptor):
    """Answer every RPC with a response, the status of a `ServeryError`, or INTERNAL."""

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Guard the handler gRPC found, if it found one."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None  # Unknown method: no series, no log line.
        method = handler_call_details.method
        parse = _parser(handler.request_deserializer)
        serialize = handler.response_serializer
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                _unary(handler.unary_unary, parse, method), None, serialize
            )
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(
                _unary(handler.stream_unary, _each(parse), method), None, serialize
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                _stream(handler.unary_stream, parse, method), None, serialize
            )
        return grpc.stream_stream_rpc_method_handler(
            _stream(handler.stream_stream, _each(parse), method), None, serialize
        )


def _parser(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    if deserializer is None:
        return lambda raw: raw

    def parse(raw: bytes) -> Any:
        try:
            return deserializer(raw)
        except DecodeError:
            raise FieldInvalidError(
                "request", f"{len(raw)} bytes", "be the protobuf message of this method"
            ) from None

    return parse


def _each(parse: Callable[[bytes], Any]) -> Callable[[AsyncIterator[bytes]], Any]:
    async def parsed(requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for raw in requests:
            yield parse(raw)

    return parsed


def _unary(
    handle: Callable[..., Awaitable[Any]], parse: Callable[[Any], Any], method: str
) -> Callable[..., Any]:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        async with _guard(method, context):
            return await handle(parse(request), context)

    return guarded


def _stream(
    handle: Callable[..., Any], parse: Callable[[Any], Any], method: str
) -> Callable[..., Any]:
    if not inspect.isasyncgenfunction(handle):  # Writes to the context, as grpc's own health does.
        return _unary(handle, parse, method)

    async def guarded(
        request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        async with _guard(method, context):
            async for response in handle(parse(request), context):
                yield response

    return guarded


@asynccontextmanager
async def _guard(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    metadata = dict(context.invocation_metadata() or ())
    sent = metadata.get(REQUEST_ID_HEADER)
    request_id.set(sent[:100] if isinstance(sent, str) else uuid.uuid4().hex)
    start = time.perf_counter()
    code = "CANCELLED"  # What is left when neither branch below is reached.
    try:
        yield
        code = _name(context.code())
    except grpc.aio.AbortError:
        code = _name(context.code())
        raise
    except ServeryError as error:
        status = rpc_status.to_status(to_status(error))
        code = status.code.name
        log.info("%s: %s", method, error)
        await context.abort_with_status(status)
    except Exception:
        code = grpc.StatusCode.INTERNAL.name
        log.exception("unhandled error in %s", method)
        await context.abort(
            grpc.StatusCode.INTERNAL,
            f"internal error; the operator finds it in the log by request id {request_id.get()}",
        )
    finally:
        _HANDLED.labels(method, code).inc()
        _DURATION.labels(method).observe(time.perf_counter() - start)


def _name(code: Any) -> str:
    """The name of a status code; grpc.aio keeps the integer, and 0 until one is set."""
    for status in grpc.StatusCode:
        if code in (status, status.value[0]):
            return status.name
    return grpc.StatusCode.OK.name
