"""Handlers that are given bytes, and answer when they like."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from typing import Any

import grpc

from servery_h2 import Limits, RawOutcome, Server, StatusError, Stream, hand_over
from tests.h2.wire import failure, method


async def test_raw_handlers_may_answer_later_fail_or_refuse() -> None:
    server = Server(limits=Limits())
    futures: list[asyncio.Future[bytes]] = []

    async def coroutine(message: bytes, _: Any) -> bytes:
        await asyncio.sleep(0)
        return message

    def later(message: bytes, _: Any) -> asyncio.Future[bytes]:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, message)
        futures.append(future)
        return future

    def refuses(_: bytes, call: Any) -> bytes:
        raise StatusError(grpc.StatusCode.NOT_FOUND, dict(call.metadata)["x-name"])

    def fails(*_: Any) -> bytes:
        raise RuntimeError("secret")

    server.add_raw_unary_handler("/raw/Coroutine", coroutine)
    server.add_raw_unary_handler("/raw/Later", later)
    server.add_raw_unary_handler("/raw/Refuses", refuses)
    server.add_raw_unary_handler("/raw/Fails", fails)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert await method(channel, "/raw/Coroutine")(b"a") == b"a"
            assert await method(channel, "/raw/Later")(b"b", timeout=5) == b"b"
            refused = await failure(
                method(channel, "/raw/Refuses")(b"", metadata=[("x-name", "it")])
            )
            failed = await failure(method(channel, "/raw/Fails")(b""))
    finally:
        await server.stop(0)
    assert (refused.code(), refused.details()) == (grpc.StatusCode.NOT_FOUND, "it")
    assert failed.code() is grpc.StatusCode.UNKNOWN


async def test_raw_handlers_may_leave_calls_to_the_ordinary_one() -> None:
    server = Server()

    def choose(message: bytes, stream: Stream) -> bytes | RawOutcome:
        if message == b"later":
            trailing = (("x-by", "raw"), ("x-large", "a" * 5_000))
            asyncio.get_running_loop().call_soon(stream.reply, b"raw, later", trailing)
        elif message == b"over":
            asyncio.get_running_loop().call_soon(hand_over, stream, message)
        else:
            return b"raw" if message == b"raw" else RawOutcome.ORDINARY
        return RawOutcome.LATER

    async def ordinary(message: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("x-by", "ordinary"),))
        return b"ordinary " + message

    handlers: dict[str, Any] = {"Both": grpc.unary_unary_rpc_method_handler(ordinary)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("raw", handlers)])
    server.add_raw_unary_handler("/raw/Both", choose)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = method(channel, "/raw/Both")
            asked = (b"raw", b"later", b"over", b"other")
            got = [await call(message, timeout=5) for message in asked]
            later = call(b"later", timeout=5)
            trailing = dict(await later.trailing_metadata())
    finally:
        await server.stop(0)
    assert trailing == {"x-by": "raw", "x-large": "a" * 5_000}
    assert got == [b"raw", b"raw, later", b"ordinary over", b"ordinary other"]
