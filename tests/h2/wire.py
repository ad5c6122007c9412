"""An HTTP/2 client that does exactly what it is told, for what no well-behaved client does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
import pytest
from hpack import Decoder

from servery_h2 import frames
from servery_h2.header_block import encode_fields

ECHO = "/echo.Echo/Raw"


class Frame(NamedTuple):
    """A frame as it came."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes

    @property
    def error(self) -> int:
        """The error code of a RST_STREAM or GOAWAY."""
        at = 4 if self.kind == frames.GOAWAY else 0
        return int.from_bytes(self.payload[at : at + 4])


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()

    async def greet(self, settings: dict[int, int] | None = None) -> None:
        """Send the preface and SETTINGS, and acknowledge those of the server."""
        self._writer.write(frames.PREFACE + frames.settings(settings or {}))
        await self.until(frames.SETTINGS)
        self._writer.write(frames.frame(frames.SETTINGS, frames.ACK, 0))

    async def send(self, *parts: bytes) -> None:
        """Send bytes; gives up quietly when the server has closed."""
        self._writer.write(b"".join(parts))
        try:
            await self._writer.drain()
        except ConnectionError:
            return

    async def next(self) -> Frame | None:
        """Return the next frame; None at the end of the connection."""
        try:
            head = await self._reader.readexactly(9)
            high, low, kind, flags, stream_id = frames.FRAME_HEADER.unpack(head)
            payload = await self._reader.readexactly(high << 8 | low)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return Frame(kind, flags, stream_id, payload)

    async def until(self, kind: int, stream_id: int | None = None) -> Frame:
        """Skip to a frame of this kind."""
        async with asyncio.timeout(10):
            while (frame := await self.next()) is not None:
                if frame.kind == kind and stream_id in (None, frame.stream_id):
                    return frame
        raise EOFError(f"the connection ended before a frame of kind {kind}")

    async def goodbye(self) -> int:
        """Wait for the end of the connection; return the error code of the last GOAWAY."""
        code = -1
        async with asyncio.timeout(10):
            while (frame := await self.next()) is not None:
                if frame.kind == frames.GOAWAY:
                    code = frame.error
        return code

    async def headers(self, stream_id: int) -> dict[str, str]:
        """Return the next header list of a stream."""
        frame = await self.until(frames.HEADERS, stream_id)
        fields: Any = self._decoder.decode(frame.payload)
        return dict(fields)

    def close(self) -> None:
        """Drop the connection without a word."""
        self._writer.transport.abort()


@asynccontextmanager
async def connected(address: str, settings: dict[int, int] | None = None) -> AsyncIterator[Wire]:
    """Connect to `host:port`, and greet."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    wire = Wire(reader, writer)
    try:
        await wire.greet(settings)
        yield wire
    finally:
        wire.close()


def request(stream_id: int, path: str = ECHO, **extra: str) -> bytes:
    """Return HEADERS that begin a call."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        "te": "trailers",
        "content-type": "application/grpc",
        **{key.replace("_", "-"): value for key, value in extra.items()},
    }
    block = encode_fields((key.encode(), value.encode()) for key, value in fields.items())
    return frames.headers(stream_id, block, 1 << 14, end_stream=False)


def data(stream_id: int, payload: bytes, *, end: bool = True) -> bytes:
    """Return a DATA frame."""
    return frames.frame(frames.DATA, frames.END_STREAM if end else 0, stream_id, payload)


def message(body: bytes, *, compressed: bool = False) -> bytes:
    """Return a message with its prefix."""
    return bytes((compressed,)) + len(body).to_bytes(4) + body


def call(stream_id: int, body: bytes = b"hello", path: str = ECHO) -> bytes:
    """Return all the frames of a unary request."""
    return request(stream_id, path) + data(stream_id, message(body))


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what happens in this process and announces itself by no event."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """Return the error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def method(channel: Any, path: str = ECHO) -> Any:
    """Return a unary method of raw bytes."""
    return channel.unary_unary(path)
