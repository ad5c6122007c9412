"""Known attacks on HTTP/2: the offender is told to calm down and closed; neighbours are served."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from servery_h2 import frames
from servery_h2.frames import ErrorCode
from servery_h2.header_block import encode_fields
from tests.h2.conftest import Serving, Start
from tests.h2.wire import ECHO, Wire, call, connected, data, eventually, message, request

CALM = ErrorCode.ENHANCE_YOUR_CALM
ROUNDS = 20_000


async def _wait(_: bytes, __: Any) -> bytes:
    return await asyncio.Future()


STUCK = grpc.method_handlers_generic_handler(
    "stuck.Stuck", {"Wait": grpc.unary_unary_rpc_method_handler(_wait)}
)


@pytest.fixture
async def serving(start: Start) -> AsyncIterator[Serving]:
    """A server whose well-behaved client is served before and after the attack."""
    serving = await start(max_ping_strikes=0)
    async with grpc.aio.insecure_channel(serving.address) as channel:
        neighbour: Any = channel.unary_unary(ECHO)
        assert await neighbour(b"x", timeout=5) == b"x"
        yield serving
        assert await neighbour(b"x", timeout=5) == b"x"
        await eventually(lambda: serving.server.num_connections == 1)
        assert serving.server._host.memory.held == 0


async def flood(wire: Wire, *parts: bytes) -> int:
    """Send `parts` over and over until the server has had enough; return its error code."""
    ending = asyncio.create_task(wire.goodbye())
    for part in parts:
        if ending.done():
            break
        await wire.send(part)
    return await ending


def fields(*pairs: tuple[bytes, bytes]) -> bytes:
    return encode_fields(pairs)


async def test_rapid_reset(serving: Serving) -> None:
    async with connected(serving.address) as wire:
        parts = (
            request(stream_id) + frames.rst_stream(stream_id, ErrorCode.CANCEL)
            for stream_id in range(1, ROUNDS, 2)
        )
        assert await flood(wire, *parts) == CALM


async def test_rapid_reset_of_calls_that_were_answered(serving: Serving) -> None:
    async with connected(serving.address) as wire:
        parts = (
            call(stream_id) + frames.rst_stream(stream_id, ErrorCode.CANCEL)
            for stream_id in range(1, ROUNDS, 2)
        )
        assert await flood(wire, *parts) == CALM


async def test_rapid_reset_of_calls_whose_time_is_over(serving: Serving) -> None:
    async with connected(serving.address) as wire:
        parts = (
            request(stream_id, grpc_timeout="1n") + frames.rst_stream(stream_id, ErrorCode.CANCEL)
            for stream_id in range(1, ROUNDS, 2)
        )
        assert await flood(wire, *parts) == CALM


async def test_a_client_that_resets_every_third_call_stays(start: Start) -> None:
    serving = await start(reset_burst=20, reset_rate=0.0)
    async with connected(serving.address) as wire:
        for stream_id in range(1, 3_000, 6):
            await wire.send(
                call(stream_id),
                call(stream_id + 2),
                request(stream_id + 4),
                frames.rst_stream(stream_id + 4, ErrorCode.CANCEL),
            )
            await wire.headers(stream_id + 2)


@pytest.mark.parametrize(
    ("answered", "timeout_s", "reset_burst"),
    [pytest.param(2, 0.01, 100, id="every third"), pytest.param(0, 0.4, 20, id="all")],
)
async def test_a_client_whose_calls_run_out_of_time_stays(
    start: Start, answered: int, timeout_s: float, reset_burst: int
) -> None:
    serving = await start(reset_burst=reset_burst, reset_rate=0.0, handlers=[STUCK])
    async with grpc.aio.insecure_channel(serving.address) as channel:
        echo: Any = channel.unary_unary(ECHO)
        stuck: Any = channel.unary_unary("/stuck.Stuck/Wait")

        async def calls() -> None:
            for _ in range(3):
                for _ in range(answered):
                    assert await echo(b"x") == b"x"
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stuck(b"x", timeout=timeout_s)
                assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

        await asyncio.gather(*[calls() for _ in range(50)])


async def test_making_the_server_reset(serving: Serving) -> None:
    async with connected(serving.address) as wire:
        parts = (
            request(stream_id) + frames.window_update(stream_id, 0)
            for stream_id in range(1, ROUNDS, 2)
        )
        assert await flood(wire, *parts) == CALM


async def test_more_streams_than_allowed(serving: Serving) -> None:
    async with connected(serving.address) as wire:
        parts = (request(stream_id) for stream_id in range(1, ROUNDS, 2))
        assert await flood(wire, *parts) == CALM


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(frames.settings({frames.INITIAL_WINDOW_SIZE: 1}), id="settings"),
        pytest.param(frames.ping(b"12345678"), id="ping"),
        pytest.param(frames.frame(frames.PRIORITY, 0, 1, b"\0\0\0\3\1"), id="priority"),
        pytest.param(frames.window_update(0, 1), id="window update"),
        pytest.param(frames.frame(0x55, 0, 0, b""), id="unknown"),
        pytest.param(frames.frame(frames.SETTINGS, frames.ACK, 0), id="settings ack"),
    ],
)
async def test_floods_of_frames_without_use(serving: Serving, frame: bytes) -> None:
    async with connected(serving.address) as wire:
        assert await flood(wire, *[frame * 100] * (ROUNDS // 100)) == CALM


async def test_floods_of_empty_data(serving: Serving) -> None:
    async with connected(serving.address) as wire:
        await wire.send(request(1))
        assert await flood(wire, *[data(1, b"", end=False) * 100] * (ROUNDS // 100)) == CALM


async def test_a_message_in_single_bytes(serving: Serving) -> None:
    async with connected(serving.address) as wire:
        await wire.send(request(1), data(1, message(bytes(1_000_000))[:5], end=False))
        assert await flood(wire, *[data(1, b"x", end=False) * 100] * (ROUNDS // 100)) == CALM


async def test_settings_with_thousands_of_entries(serving: Serving) -> None:
    async with connected(serving.address) as wire:
        entry = frames.INITIAL_WINDOW_SIZE.to_bytes(2) + (1).to_bytes(4)
        await wire.send(frames.frame(frames.SETTINGS, 0, 0, entry * 2_000))
        assert await wire.goodbye() == CALM


@pytest.mark.parametrize("part", [b"", b"\0" + b"\1a" + b"\1b"])
async def test_continuation_flood(serving: Serving, part: bytes) -> None:
    async with connected(serving.address) as wire:
        begin = frames.frame(frames.HEADERS, 0, 1, fields((b":method", b"POST")))
        more = frames.frame(frames.CONTINUATION, 0, 1, part)
        assert await flood(wire, begin, *[more * 100] * 100) == CALM


async def test_a_header_block_beyond_every_limit(serving: Serving) -> None:
    async with connected(serving.address) as wire:
        begin = frames.frame(frames.HEADERS, 0, 1, fields((b":method", b"POST")))
        more = frames.frame(frames.CONTINUATION, 0, 1, b"x" * 16_384)
        assert await flood(wire, begin, *[more] * 30) == CALM


async def test_an_hpack_bomb(serving: Serving) -> None:
    # One entry of 3 KB enters the table; then every byte of a block names it again.
    entry = b"\x40" + fields((b"x-bomb", b"v" * 3_000))[1:]
    block = fields((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a")) + entry
    async with connected(serving.address) as wire:
        await wire.send(frames.headers(1, block + b"\xbe" * 10_000, 1 << 14, end_stream=True))
        assert await wire.goodbye() == CALM


async def test_a_frame_that_says_it_is_huge(serving: Serving) -> None:
    async with connected(serving.address) as wire:
        await wire.send(frames.frame_header((1 << 24) - 1, frames.HEADERS, 4, 1) + b"x" * 1_000)
        assert await wire.goodbye() == ErrorCode.FRAME_SIZE_ERROR


async def test_data_without_end_for_a_stream_that_was_reset(serving: Serving) -> None:
    async with connected(serving.address) as wire:
        await wire.send(request(1, "/no.Such/Method"))
        await wire.until(frames.RST_STREAM, 1)
        part = data(1, bytes(16_384), end=False)
        assert await flood(wire, *[part] * 1_000) == ErrorCode.STREAM_CLOSED


async def test_a_compressed_bomb(serving: Serving) -> None:
    bomb = zlib.compress(bytes(50_000_000), 9)
    async with connected(serving.address) as wire:
        await wire.send(request(1, grpc_encoding="deflate"))
        await wire.send(data(1, message(bomb, compressed=True)))
        assert (await wire.headers(1))["grpc-status"] == "8"


async def test_a_peer_that_asks_and_does_not_read(start: Start) -> None:
    serving = await start(max_ping_strikes=0, control_burst=10**9, max_control_backlog_bytes=10_000)
    async with connected(serving.address) as wire:
        wire._reader._transport.pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(20):
            while serving.server.num_connections:
                wire._writer.write(frames.ping(b"12345678") * 10_000)
                await asyncio.sleep(0)


async def test_zero_windows_do_not_keep_a_response_forever(start: Start) -> None:
    serving = await start(stall_s=0.1)
    async with connected(serving.address, {frames.INITIAL_WINDOW_SIZE: 0}) as wire:
        await wire.send(b"".join(call(stream_id) for stream_id in range(1, 101, 2)))
        for stream_id in range(1, 101, 2):
            reset = await wire.until(frames.RST_STREAM, stream_id)
            assert reset.error == ErrorCode.CANCEL


async def test_a_body_that_never_ends_is_given_up(start: Start) -> None:
    serving = await start(stall_s=0.1)
    async with connected(serving.address) as wire:
        await wire.send(request(1), data(1, message(bytes(1_000))[:500], end=False))
        assert (await wire.until(frames.RST_STREAM, 1)).error == ErrorCode.CANCEL
    assert serving.server._host.memory.held == 0


async def test_a_stream_of_requests_may_pause_as_long_as_it_likes(start: Start) -> None:
    serving = await start(stall_s=0.1)
    async with grpc.aio.insecure_channel(serving.address) as channel:
        stream: Any = channel.stream_stream("/grpc.testing.TestService/FullDuplexCall")()
        await stream.write(b"")
        await asyncio.sleep(2.2)  # Two ticks of the server's clock.
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK


async def test_a_connection_that_says_nothing_is_closed(start: Start) -> None:
    serving = await start(handshake_s=0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
    async with asyncio.timeout(5):
        await reader.read()
    writer.close()


async def test_http_1_is_not_spoken(serving: Serving) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(5):
        await reader.read()
    writer.close()


async def test_too_many_connections(start: Start) -> None:
    serving = await start(max_connections=3)
    wires: list[Any] = []
    for _ in range(3):
        wire = connected(serving.address)
        await wire.__aenter__()
        wires.append(wire)
    with pytest.raises((EOFError, ConnectionError)):
        async with connected(serving.address):
            pass
    for wire in wires:
        await wire.__aexit__(None, None, None)


async def test_a_client_that_vanishes_leaves_nothing(start: Start) -> None:
    serving = await start()
    for _ in range(20):
        async with connected(serving.address) as wire:
            await wire.send(request(1), data(1, message(bytes(1_000))[:500], end=False))
            await wire.send(request(3, "/grpc.testing.TestService/FullDuplexCall"))
            await wire.send(frames.ping(b"12345678"))
            await wire.until(frames.PING)
    await eventually(lambda: not serving.server.num_connections)
    assert serving.server._host.memory.held == 0
