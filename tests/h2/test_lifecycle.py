"""How connections begin, stay and end without losing a call."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from servery_h2 import Server, frames
from servery_h2.frames import ErrorCode
from tests.h2.conftest import Start
from tests.h2.wire import ECHO, call, connected, data, message, method, request


async def test_a_drain_serves_what_was_on_its_way(start: Start) -> None:
    serving = await start()
    async with connected(serving.address) as wire:
        await wire.send(request(1))
        await wire.send(frames.ping(b"12345678"))
        await wire.until(frames.PING)
        stopping = asyncio.create_task(serving.server.stop(10))
        first = await wire.until(frames.GOAWAY)
        assert int.from_bytes(first.payload[:4]) == frames.MAX_STREAM_ID
        ping = await wire.until(frames.PING)
        await wire.send(call(3))  # Was sent before the client knew.
        assert (await wire.until(frames.DATA, 3)).payload == message(b"hello")
        await wire.send(frames.ping(ping.payload, ack=True))
        second = await wire.until(frames.GOAWAY)
        assert int.from_bytes(second.payload[:4]) == 3
        await wire.send(call(5))  # Refused: the client will send it elsewhere.
        await wire.send(data(1, message(b"last")))
        assert (await wire.until(frames.DATA)).stream_id == 1
        assert await wire.goodbye() in (-1, ErrorCode.NO_ERROR)
        async with asyncio.timeout(5):
            await stopping


async def test_clients_lose_no_call_when_servers_restart() -> None:
    failed, ended = 0, False
    server = Server()
    server.add_raw_unary_handler(ECHO, lambda body, _: body)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        echo = method(channel, ECHO)

        async def load() -> int:
            nonlocal failed
            sent = 0
            while not ended:
                try:
                    await echo(b"x", wait_for_ready=True, timeout=20)
                except grpc.aio.AioRpcError:
                    failed += 1
                sent += 1
            return sent

        loads = [asyncio.create_task(load()) for _ in range(4)]
        for _ in range(5):
            await echo(b"x", wait_for_ready=True, timeout=20)
            await server.stop(5)
            server = Server()
            server.add_raw_unary_handler(ECHO, lambda body, _: body)
            assert server.add_insecure_port(f"127.0.0.1:{port}") == port
            await server.start()
        ended = True
        assert sum(await asyncio.gather(*loads)) > 5
    await server.stop(0)
    assert failed == 0


async def test_calls_that_outlive_the_grace_are_cancelled(start: Start) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def sleeps(*_: Any) -> bytes:
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return b""

    handler = grpc.method_handlers_generic_handler(
        "t.T", {"M": grpc.unary_unary_rpc_method_handler(sleeps)}
    )
    serving = await start(handlers=[handler])
    async with grpc.aio.insecure_channel(serving.address) as channel:
        running = method(channel, "/t.T/M")(b"")
        async with asyncio.timeout(5):
            await began.wait()
            await serving.server.stop(0.1)
            await ended.wait()
        assert await running.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_old_connection_is_told_to_go(start: Start) -> None:
    serving = await start(max_age_s=0.1)
    async with connected(serving.address) as wire:
        await wire.until(frames.GOAWAY)
        await wire.send(frames.ping((await wire.until(frames.PING)).payload, ack=True))
        assert await wire.goodbye() == ErrorCode.NO_ERROR


async def test_an_idle_connection_is_told_to_go(start: Start) -> None:
    serving = await start(max_idle_s=0.1)
    async with connected(serving.address) as wire:
        await wire.until(frames.GOAWAY)


async def test_a_peer_that_does_not_answer_pings_is_dropped(start: Start) -> None:
    serving = await start(keepalive_s=0.1, keepalive_timeout_s=0.1)
    async with connected(serving.address) as wire:
        await wire.until(frames.PING)
        assert await wire.goodbye() == -1


async def test_a_peer_that_answers_pings_stays(start: Start) -> None:
    serving = await start(keepalive_s=0.1, keepalive_timeout_s=0.5)
    async with connected(serving.address) as wire:
        for _ in range(2):
            await wire.send(frames.ping((await wire.until(frames.PING)).payload, ack=True))
        await wire.send(call(1))
        assert (await wire.until(frames.DATA, 1)).payload == message(b"hello")


async def test_a_peer_that_pings_for_nothing_is_closed(start: Start) -> None:
    serving = await start()
    async with connected(serving.address) as wire:
        await wire.send(frames.ping(b"12345678") * 4)
        assert await wire.goodbye() == ErrorCode.ENHANCE_YOUR_CALM


async def test_pings_between_calls_are_welcome(start: Start) -> None:
    serving = await start()
    async with connected(serving.address) as wire:
        for stream_id in range(1, 41, 2):
            await wire.send(call(stream_id), frames.ping(b"12345678"))
            await wire.until(frames.DATA, stream_id)
            await wire.until(frames.PING)


async def test_nothing_is_left_after_stop(start: Start) -> None:
    serving = await start()
    async with grpc.aio.insecure_channel(serving.address) as channel:
        await method(channel, ECHO)(b"x")
        assert serving.server.num_connections == 1
        async with asyncio.timeout(5):
            await serving.server.stop(1)
        assert serving.server.num_connections == 0
        assert not await serving.server.wait_for_termination(1)
