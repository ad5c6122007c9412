"""Runs the handler of a call and turns whatever comes of it into a status."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc

from servery_h2.context import CallContext
from servery_h2.faults import StatusError
from servery_h2.methods import Method, RawOutcome
from servery_h2.stream import Stream

log = logging.getLogger(__name__)


def start_unary(stream: Stream, method: Method, message: bytes) -> None:
    """Run the handler of a call whose one request message is `message`."""
    if stream.deadline is not None and stream.deadline <= stream.connection.loop.time():
        stream.expire()
    elif method.raw is not None:
        _start_raw(stream, method, method.raw, message)
    else:
        _start_task(stream, method, message)


def hand_over(stream: Stream, message: bytes) -> None:
    """Let the ordinary handler of its path answer a call that a raw handler left for later."""
    if not stream.closed and stream.method is not None:
        _start_task(stream, stream.method, message)


def start_streaming(stream: Stream, method: Method) -> None:
    """Run the handler of a call that reads its requests one by one."""
    _start_task(stream, method, None)


def _start_raw(
    stream: Stream, method: Method, handle: Callable[[bytes, Stream], Any], message: bytes
) -> None:
    try:
        response = handle(message, stream)
    except Exception as error:
        _fail(stream, error)
        return
    if isinstance(response, bytes):
        stream.reply(response)
    elif response is RawOutcome.ORDINARY:
        _start_task(stream, method, message)
    elif response is RawOutcome.LATER:
        pass
    elif inspect.isawaitable(response):
        task = asyncio.ensure_future(response, loop=stream.connection.loop)
        _watch(stream, task)
        task.add_done_callback(partial(_end_raw, stream))
    else:
        _fail(stream, TypeError(f"a raw handler returned {type(response).__name__}, not bytes"))


def _end_raw(stream: Stream, future: asyncio.Future[bytes]) -> None:
    if future.cancelled():
        stream.finish(grpc.StatusCode.CANCELLED, "the handler was cancelled")
        return
    error = future.exception()
    if error is None:
        stream.reply(future.result())
    elif not stream.closed:
        _fail(stream, error)


def _start_task(stream: Stream, method: Method, message: bytes | None) -> None:
    _watch(stream, stream.connection.loop.create_task(_run(stream, method, message)))


def _watch(stream: Stream, task: asyncio.Future[Any]) -> None:
    stream.task = task
    running = stream.connection.host.running
    running.add(task)
    task.add_done_callback(running.discard)
    if stream.deadline is not None:
        stream.timer = stream.connection.loop.call_at(stream.deadline, stream.expire)


async def _run(stream: Stream, method: Method, message: bytes | None) -> None:
    context: CallContext | None = None
    try:
        handler = await method.resolve()
        if handler is None:
            raise StatusError(grpc.StatusCode.UNIMPLEMENTED, f"{method.path} is not served")
        context = CallContext(stream, handler.request_deserializer, handler.response_serializer)
        request = _requests(stream, context) if message is None else _parse(context, message)
        if handler.response_streaming:
            await _stream_responses(handler, request, context)
            context.finish()
        else:
            context.respond(
                await _call(handler.stream_unary or handler.unary_unary, request, context)
            )
    except grpc.aio.AbortError:
        if context is not None:
            context.finish()
    except asyncio.CancelledError:
        stream.finish(grpc.StatusCode.CANCELLED, "the handler was cancelled")
        raise
    except Exception as error:
        if not stream.closed:
            _fail(stream, error)


async def _call(handle: Callable[..., Any], request: Any, context: CallContext) -> Any:
    """Await an async handler; run any other in a thread, where it may block."""
    if _is_async(handle):
        return await handle(request, context)
    response = await asyncio.to_thread(handle, request, context)
    return await response if inspect.isawaitable(response) else response


async def _stream_responses(handler: Any, request: Any, context: CallContext) -> None:
    """Send what an async generator yields, or let a coroutine write to its context."""
    responses = (handler.stream_stream or handler.unary_stream)(request, context)
    if inspect.isawaitable(responses):
        await responses
        return
    try:
        async for response in responses:
            await context.write(response)
    finally:
        if inspect.isasyncgen(responses):
            await responses.aclose()


def _is_async(handle: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(handle) or inspect.iscoroutinefunction(
        getattr(handle, "__call__", None)  # noqa: B004 (its kind is asked for, not callability)
    )


async def _requests(stream: Stream, context: CallContext) -> AsyncIterator[Any]:
    while (message := await stream.read()) is not None:
        yield _parse(context, message)


def _parse(context: CallContext, message: bytes) -> Any:
    try:
        return context.parse(message)
    except Exception:
        raise StatusError(
            grpc.StatusCode.INTERNAL, f"{len(message)} bytes are not the message of this method"
        ) from None


def _fail(stream: Stream, error: BaseException) -> None:
    if isinstance(error, StatusError):
        stream.finish(error.code, error.details, error.trailing_metadata)
        return
    path = stream.method.path if stream.method is not None else ""
    log.error("unhandled error in %s", path, exc_info=error)
    stream.finish(grpc.StatusCode.UNKNOWN, "the handler failed")
