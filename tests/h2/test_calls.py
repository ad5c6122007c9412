"""Calls through grpcio's own clients."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, error_details_pb2
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from servery_h2 import Server
from tests.h2 import interop
from tests.h2.conftest import Serving, Start
from tests.h2.wire import failure, method

SERVICE = f"/{interop.SERVICE}/"


class Client:
    """The interop methods over a channel, and raw bytes for the rest."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    def unary(self, name: str, response: str = "SimpleResponse") -> Any:
        return self.channel.unary_unary(SERVICE + name, *self._codec(response))

    def out(self, name: str) -> Any:
        return self.channel.unary_stream(
            SERVICE + name, *self._codec("StreamingOutputCallResponse")
        )

    def into(self, name: str) -> Any:
        return self.channel.stream_unary(SERVICE + name, *self._codec("StreamingInputCallResponse"))

    def both(self, name: str) -> Any:
        return self.channel.stream_stream(
            SERVICE + name, *self._codec("StreamingOutputCallResponse")
        )

    def raw(self, path: str = "/echo.Echo/Raw") -> Any:
        return self.channel.unary_unary(path)

    @staticmethod
    def _codec(response: str) -> tuple[Any, Any]:
        return (
            lambda message: message.SerializeToString(),
            interop.MESSAGES[response].FromString,
        )


@pytest.fixture
async def serving(start: Start) -> Serving:
    return await start()


@pytest.fixture
async def client(serving: Serving) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(serving.address) as channel:
        yield Client(channel)


def output(*sizes: int, interval_us: int = 0) -> Any:
    parameters = [{"size": size, "interval_us": interval_us} for size in sizes]
    return interop.StreamingOutputCallRequest(response_parameters=parameters)


@pytest.mark.parametrize("size", [0, 1, 65_531, 100_000, 3_000_000])
async def test_a_unary_call_gets_its_response_whatever_its_size(client: Client, size: int) -> None:
    payload = bytes(size)
    assert await client.raw()(payload) == payload
    request = interop.SimpleRequest(response_size=size, payload={"body": payload})
    response = await client.unary("UnaryCall")(request)
    assert len(response.payload.body) == size


async def test_a_sync_client_is_served(serving: Serving) -> None:
    def echo() -> bytes:
        with grpc.insecure_channel(serving.address) as channel:
            return bytes(method(channel, "/echo.Echo/Raw")(b"x", timeout=5))

    assert await asyncio.to_thread(echo) == b"x"


async def test_responses_stream_in_order(client: Client) -> None:
    sizes = [1, 100_000, 0, 70_000]
    responses = client.out("StreamingOutputCall")(output(*sizes))
    assert [len(response.payload.body) async for response in responses] == sizes


async def test_requests_stream_into_one_response(client: Client) -> None:
    async def requests() -> AsyncIterator[Any]:
        for size in (27_182, 8, 1_828, 45_904):
            yield interop.StreamingInputCallRequest(payload={"body": bytes(size)})

    assert (await client.into("StreamingInputCall")(requests())).aggregated_payload_size == 74_922


async def test_both_sides_stream_at_once(client: Client) -> None:
    call = client.both("FullDuplexCall")()
    for size in (31_415, 9, 2_653, 58_979):
        await call.write(output(size))
        assert len((await call.read()).payload.body) == size
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_a_hundred_calls_run_at_once(client: Client) -> None:
    call = client.unary("UnaryCall")
    responses = await asyncio.gather(
        *(call(interop.SimpleRequest(response_size=size)) for size in range(100))
    )
    assert [len(response.payload.body) for response in responses] == list(range(100))


async def test_metadata_goes_both_ways(client: Client) -> None:
    sent = (("x-grpc-test-echo-initial", "näh"[0]), ("x-grpc-test-echo-trailing-bin", b"\x00\xff,"))
    call = client.unary("EmptyCall", "Empty")(interop.Empty(), metadata=sent)
    assert dict(await call.initial_metadata())["x-grpc-test-echo-initial"] == "n"
    assert dict(await call.trailing_metadata())["x-grpc-test-echo-trailing-bin"] == b"\x00\xff,"


@pytest.mark.parametrize("details", ["", "plain", "50% \t\r\nüñí 💥", "x" * 3_000])
async def test_a_status_keeps_its_message(client: Client, details: str) -> None:
    request = interop.SimpleRequest(response_status={"code": 9, "message": details})
    error = await failure(client.unary("UnaryCall")(request))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == details


async def test_a_stream_that_fails_after_messages_says_why(client: Client) -> None:
    request = output(5)
    request.response_status.code = 8
    responses = client.out("StreamingOutputCall")(request)
    assert len((await responses.read()).payload.body) == 5
    error = await failure(responses.read())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("path", ["/grpc.testing.TestService/Nothing", "/no.Such/Method"])
async def test_an_unknown_method_is_unimplemented(client: Client, path: str) -> None:
    error = await failure(client.raw(path)(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_deadline_ends_the_call_on_both_sides(start: Start) -> None:
    ended = asyncio.Event()

    async def sleeps(_: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        remaining = context.time_remaining()
        assert remaining is not None
        assert remaining < 0.3
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        return b""

    async with calling(start, sleeps) as call:
        error = await failure(call(b"", timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(5):
            await ended.wait()


async def test_cancelling_a_call_cancels_its_handler(start: Start) -> None:
    began, ended, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def sleeps(_: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        _on_done(context, lambda it: done.set() if it.cancelled() else None)
        began.set()
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        return b""

    async with calling(start, sleeps) as running:
        call = running(b"")
        async with asyncio.timeout(5):
            await began.wait()
            call.cancel()
            await ended.wait()
            await done.wait()


async def test_a_handler_that_fails_tells_the_caller_nothing_about_it(start: Start) -> None:
    async def fails(*_: Any) -> bytes:
        raise RuntimeError("secret")

    async with calling(start, fails) as call:
        error = await failure(call(b""))
        assert error.code() is grpc.StatusCode.UNKNOWN
        assert "secret" not in str(error.details())


async def test_status_details_arrive(start: Start) -> None:
    async def fails(_: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        detail = AnyMessage()
        detail.Pack(error_details_pb2.ErrorInfo(reason="R" * 1_000, domain="d"))
        status = Status(code=code_pb2.NOT_FOUND, message="no", details=[detail])
        await context.abort_with_status(rpc_status.to_status(status))

    async with calling(start, fails) as call:
        status: Any = rpc_status.from_call(await failure(call(b"")))
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert (status.code, info.domain) == (code_pb2.NOT_FOUND, "d")


async def test_a_handler_that_blocks_runs_in_a_thread(start: Start) -> None:
    loop_thread = asyncio.get_running_loop()

    def blocks(*_: Any) -> bytes:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop_thread).result(timeout=5)
        return b"done"

    async with calling(start, blocks) as call:
        assert await call(b"") == b"done"


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_requests_may_be_compressed(client: Client, compression: grpc.Compression) -> None:
    body = b"a" * 200_000
    assert await client.raw()(body, compression=compression) == body


async def test_responses_are_compressed_for_those_who_take_it(client: Client) -> None:
    request = interop.SimpleRequest(response_size=100_000, response_compressed={"value": True})
    call = client.unary("UnaryCall")(request)
    assert len((await call).payload.body) == 100_000
    assert dict(await call.initial_metadata()).get("grpc-encoding") in (None, "gzip")


async def test_a_message_above_the_limit_is_refused_and_the_connection_lives(start: Start) -> None:
    serving = await start(max_receive_message_bytes=1_000)
    async with grpc.aio.insecure_channel(serving.address) as channel:
        call = method(channel, "/echo.Echo/Raw")
        for body in (bytes(1_001), bytes(5_000_000)):
            error = await failure(call(body))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        error = await failure(call(bytes(1_000_000), compression=grpc.Compression.Gzip))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await call(bytes(1_000)) == bytes(1_000)
        assert serving.server.num_connections == 1


async def test_a_response_above_the_limit_is_refused(start: Start) -> None:
    serving = await start(max_send_message_bytes=10)
    async with grpc.aio.insecure_channel(serving.address) as channel:
        error = await failure(method(channel, "/echo.Echo/Raw")(bytes(11)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_metadata_above_the_limit_is_refused_and_the_connection_lives(start: Start) -> None:
    serving = await start(max_header_list_bytes=1_000)
    # The client obeys what the server announces unless told otherwise.
    async with grpc.aio.insecure_channel(serving.address) as channel:
        call = method(channel, "/echo.Echo/Raw")
        error = await failure(call(b"", metadata=[("x-long", "y" * 1_500)]))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await call(b"x") == b"x"


class _Recorder(grpc.aio.ServerInterceptor):
    """Counts the methods it was asked for, and the calls they got."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.called = 0

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        self.asked.append(handler_call_details.method)
        handler = await continuation(handler_call_details)

        async def counted(request: Any, context: Any) -> Any:
            self.called += 1
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            counted, handler.request_deserializer, handler.response_serializer
        )


async def test_an_interceptor_is_asked_once_and_wraps_every_call() -> None:
    recorder = _Recorder()
    server = Server(interceptors=[recorder])
    server.add_generic_rpc_handlers([interop.handlers()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = Client(channel).unary("UnaryCall")
            await asyncio.gather(*(call(interop.SimpleRequest()) for _ in range(5)))
            await failure(method(channel, "/no.Such/Method")(b""))
    finally:
        await server.stop(0)
    assert recorder.asked == [SERVICE + "UnaryCall"]
    assert recorder.called == 5


def _on_done(context: Any, callback: Any) -> None:
    context.add_done_callback(callback)


class calling:  # noqa: N801 (reads as the context manager it is)
    """A channel to a server whose method `/t.T/M` is `handler`; gives the method."""

    def __init__(self, start: Start, handler: Any) -> None:
        self._start = start
        self._handler = grpc.method_handlers_generic_handler(
            "t.T", {"M": grpc.unary_unary_rpc_method_handler(handler)}
        )

    async def __aenter__(self) -> Any:
        serving = await self._start(handlers=[self._handler])
        self._channel = grpc.aio.insecure_channel(serving.address)
        return self._channel.unary_unary("/t.T/M")

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()
