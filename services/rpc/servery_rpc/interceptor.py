"""What happens around every RPC: parse, count, and turn exceptions into statuses.

All four kinds of method become one shape here: bytes in, messages out. So a request that is not the
protobuf it should be is the caller's INVALID_ARGUMENT and not grpcio's INTERNAL.
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import contextvars
import inspect
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from servery_rpc.call_metrics import calls_of
from servery_rpc.errors import FieldInvalidError, ServeryError, to_status

if TYPE_CHECKING:
    from servery_rpc.telemetry import Telemetry

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

_OK: Final = grpc.StatusCode.OK.name
_CANCELLED: Final = grpc.StatusCode.CANCELLED.name  # What is left when a handler did not end.
_NAMES: Final = {status.value[0]: status.name for status in grpc.StatusCode}

REQUEST_ID_HEADER: Final = "x-request-id"
RETRY_HEADER: Final = "grpc-retry-pushback-ms"
"""Trailing metadata by which clients of gRPC know when to retry."""

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""The id of the RPC this code runs for: the caller's, Envoy's, or a new one."""

trace_id: contextvars.ContextVar[str] = contextvars.ContextVar("trace_id", default="")
"""The W3C trace that the RPC belongs to; empty where calls are not traced."""


class ServeryInterceptor(grpc.aio.ServerInterceptor):
    """Answer every RPC with a response, the status of a `ServeryError`, or INTERNAL.

    Args:
        telemetry: Traces the calls; None to trace none.
    """

    def __init__(self, telemetry: Telemetry | None = None) -> None:
        self._telemetry = telemetry
        self._guarded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Guard the handler gRPC found, if it found one. Called for every RPC, so remembered."""
        method = handler_call_details.method
        if method not in self._guarded:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None  # Unknown method: no series, no log line.
            self.guard(handler, method)
        return self._guarded[method]

    def guard(
        self, handler: grpc.RpcMethodHandler[Any, Any], method: str
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return what answers `method` in place of `handler`; remembered, too."""
        if method not in self._guarded:
            self._guarded[method] = _guard(handler, method, self._telemetry)
        return self._guarded[method]


def _guard(
    handler: Any, method: str, telemetry: Telemetry | None
) -> grpc.RpcMethodHandler[Any, Any]:
    parse: Callable[..., Any] = _parser(handler.request_deserializer)
    serialize = handler.response_serializer
    if handler.request_streaming:
        parse = _each(parse)
    handle = handler.unary_unary or handler.stream_unary
    if handle is not None:
        guarded = _unary(handle, parse, method)
    else:
        guarded = _stream(handler.unary_stream or handler.stream_stream, parse, method)
    if telemetry is not None:
        guarded = telemetry.traced(guarded, method)
    make = _MAKERS[handler.request_streaming, handler.response_streaming]
    return make(guarded, None, serialize)


_MAKERS: Final[Mapping[tuple[bool, bool], Callable[..., grpc.RpcMethodHandler[Any, Any]]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""By whether requests and responses are streams."""


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
    calls = calls_of(method)

    async def guarded(request: Any, context: Context) -> Any:
        start = _begin(context)
        code = _CANCELLED
        try:
            response = await handle(parse(request), context)
            code = code_of(context)
        except grpc.aio.AbortError:
            code = code_of(context)
            raise
        except Exception as error:
            status = _status(error, method)
            code = status.code.name
            await context.abort_with_status(status)
        else:
            return response
        finally:
            calls.end(code, start)

    return guarded


def _stream(
    handle: Callable[..., Any], parse: Callable[[Any], Any], method: str
) -> Callable[..., Any]:
    if not inspect.isasyncgenfunction(handle):  # Writes to the context, as grpc's own health does.
        return _unary(handle, parse, method)
    calls = calls_of(method)

    async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
        start = _begin(context)
        code = _CANCELLED
        try:
            async for response in handle(parse(request), context):
                yield response
            code = code_of(context)
        except grpc.aio.AbortError:
            code = code_of(context)
            raise
        except Exception as error:
            status = _status(error, method)
            code = status.code.name
            await context.abort_with_status(status)
        finally:
            calls.end(code, start)

    return guarded


def _begin(context: Context) -> float:
    """Set the id of this call; return when it began."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_HEADER:
            request_id.set(str(value)[:100])
            break
    else:
        request_id.set(f"{random.getrandbits(64):016x}")
    return time.perf_counter()


def _status(error: Exception, method: str) -> Any:
    """Return the status that `error` means to the caller; log what it means to the operator."""
    if isinstance(error, ServeryError):
        log.info("%s: %s", method, error)
        status = rpc_status.to_status(to_status(error))
        if error.retry_after_ms is None:
            return status
        pushback = (RETRY_HEADER, str(error.retry_after_ms))
        return status._replace(trailing_metadata=(*status.trailing_metadata, pushback))
    log.error("unhandled error in %s", method, exc_info=error)
    message = f"internal error; the operator finds it in the log by {request_id.get()}"
    return rpc_status.to_status(Status(code=code_pb2.INTERNAL, message=message))


def code_of(context: Context) -> str:
    """The name of the code a handler has set; grpc.aio keeps the integer, or 0 until one is set."""
    code: Any = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else _NAMES.get(code, _OK)
