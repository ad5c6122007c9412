"""Nobody makes the server hold more than the windows say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from servery_h2 import frames
from tests.h2.conftest import Start
from tests.h2.wire import ECHO, call, connected, data, message, request


def streaming(handler: Any) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        "t.T", {"M": grpc.stream_stream_rpc_method_handler(handler)}
    )


async def settle() -> None:
    """Let everything that can run, run."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_consumer_that_does_not_read_stops_the_handler(start: Start) -> None:
    written = 0

    async def floods(*_: Any) -> AsyncIterator[bytes]:
        nonlocal written
        while True:
            yield bytes(10_000)
            written += 1

    serving = await start(handlers=[streaming(floods)])
    async with connected(serving.address) as wire:
        await wire.send(request(1, "/t.T/M"))
        for _ in range(7):  # 65,535 bytes of window hold six messages.
            await wire.until(frames.DATA, 1)
        await settle()
        assert written == 6
        await wire.send(frames.window_update(1, 20_000), frames.window_update(0, 20_000))
        for _ in range(2):
            await wire.until(frames.DATA, 1)
        await settle()
        assert written == 8


async def test_a_handler_that_does_not_read_stops_the_sender(start: Start) -> None:
    go, total = asyncio.Event(), 0

    async def waits(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        nonlocal total
        await go.wait()
        async for item in requests:
            total += len(item)
        yield b"done"

    serving = await start(handlers=[streaming(waits)], stream_window_bytes=100_000)
    async with grpc.aio.insecure_channel(serving.address) as channel:
        stream: Any = channel.stream_stream("/t.T/M")()
        sent = 0

        async def send() -> None:
            nonlocal sent
            for _ in range(200):
                await stream.write(bytes(10_000))
                sent += 1
            await stream.done_writing()

        sending = asyncio.create_task(send())
        while True:  # Until it sends no more.
            before = sent
            await asyncio.sleep(0.2)
            if sent == before and sent:
                break
        assert serving.server._host.memory.held <= 100_000
        go.set()
        assert await stream.read() == b"done"
        await sending
    assert total == 2_000_000
    assert serving.server._host.memory.held == 0


async def test_a_large_response_waits_for_window_and_then_arrives_whole(start: Start) -> None:
    serving = await start()
    body = bytes(range(256)) * 1_000
    async with connected(serving.address) as wire:
        await wire.send(request(1))
        framed = message(body)
        for at in range(0, len(framed), 16_000):
            last = at + 16_000 >= len(framed)
            await wire.send(data(1, framed[at : at + 16_000], end=last))
        received = b""
        while len(received) < len(framed):
            frame = await wire.until(frames.DATA, 1)
            assert len(frame.payload) <= 16_384
            received += frame.payload
            size = len(frame.payload)
            await wire.send(frames.window_update(0, size), frames.window_update(1, size))
        assert received == framed
        assert (await wire.headers(1))["grpc-status"] == "0"


async def test_small_responses_respect_the_window_of_the_connection(start: Start) -> None:
    serving = await start()
    async with connected(serving.address, {frames.INITIAL_WINDOW_SIZE: 1 << 20}) as wire:
        ids = range(1, 21, 2)
        await wire.send(b"".join(call(stream_id, bytes(10_000)) for stream_id in ids))
        await wire.send(frames.ping(b"12345678"))
        received = 0
        while (frame := await wire.next()) is not None and frame.kind != frames.PING:
            received += len(frame.payload) if frame.kind == frames.DATA else 0
        assert received == frames.DEFAULT_WINDOW
        await wire.send(frames.window_update(0, 1 << 20))
        assert (await wire.headers(ids[-1])).keys() <= {"grpc-status"}


async def test_a_small_call_overtakes_a_large_response_that_waits(start: Start) -> None:
    serving = await start()
    async with connected(serving.address) as wire:
        await wire.send(request(1), data(1, message(bytes(200_000))))
        await wire.send(frames.window_update(0, 1_000_000))
        while (await wire.until(frames.DATA)).stream_id == 1:
            await wire.send(call(3))
            break
        answer = await wire.until(frames.DATA, 3)
        assert answer.payload == message(b"hello")


@pytest.mark.parametrize("cut", [1, 5, 9, 14, 30, 60, 100])
async def test_frames_may_be_cut_anywhere(start: Start, cut: int) -> None:
    serving = await start()
    async with connected(serving.address) as wire:
        everything = b"".join(call(stream_id) for stream_id in range(1, 21, 2))
        for at in range(0, len(everything), cut):
            await wire.send(everything[at : at + cut])
            if cut > 1:
                await settle()
        for stream_id in range(1, 21, 2):
            answer = await wire.until(frames.DATA, stream_id)
            assert answer.payload == message(b"hello")


@pytest.mark.parametrize("cut", [1, 3, 10, 14, 15, 20, 100_000])
@pytest.mark.parametrize("size", [0, 5, 20_000])
async def test_padding_is_not_part_of_the_message(start: Start, size: int, cut: int) -> None:
    serving = await start()
    async with connected(serving.address) as wire:
        padded = bytes((7,)) + message(bytes(size)) + bytes(7)
        flags = frames.PADDED | frames.END_STREAM
        everything = request(1) + frames.frame(frames.DATA, flags, 1, padded) + call(3)
        cut = max(cut, size // 50)
        for at in range(0, len(everything), cut):
            await wire.send(everything[at : at + cut])
            await asyncio.sleep(0)
        got = b""
        while len(got) < size + 5:
            got += (await wire.until(frames.DATA, 1)).payload
        assert got == message(bytes(size))
        assert (await wire.until(frames.DATA, 3)).payload == message(b"hello")


async def test_a_peer_that_exceeds_the_window_of_a_stream_loses_the_stream(start: Start) -> None:
    serving = await start(stream_window_bytes=1_000)
    async with connected(serving.address) as wire:
        await wire.send(request(1, "/grpc.testing.TestService/StreamingInputCall"))
        await wire.send(data(1, message(bytes(2_000)), end=False))
        reset = await wire.until(frames.RST_STREAM, 1)
        assert reset.error == frames.ErrorCode.FLOW_CONTROL_ERROR
        await wire.send(call(3))
        assert (await wire.until(frames.DATA, 3)).payload == message(b"hello")


async def test_requests_the_server_has_no_memory_for_are_refused(start: Start) -> None:
    serving = await start()
    serving.server._host.memory.limit = 100_000
    async with connected(serving.address) as wire:
        await wire.send(request(1), data(1, message(bytes(90_000))[:-1], end=False))
        await wire.send(request(3), data(3, message(bytes(90_000))[:-1], end=False))
        assert (await wire.headers(3))["grpc-status"] == "8"
        await wire.send(data(1, b"\0"))
        assert (await wire.until(frames.DATA, 1)).payload
        assert serving.server._host.memory.held == 0


async def test_a_refused_path_keeps_no_stream(start: Start) -> None:
    serving = await start()
    async with connected(serving.address) as wire:
        await wire.send(request(1, ECHO + "no"))
        assert (await wire.headers(1))["grpc-status"] == "12"
        assert (await wire.until(frames.RST_STREAM, 1)).error == frames.ErrorCode.NO_ERROR
        await wire.send(data(1, b"late"), call(3))  # What was on its way is ignored.
        assert (await wire.until(frames.DATA, 3)).payload == message(b"hello")
