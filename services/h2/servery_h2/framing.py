"""Cuts what comes into frames, with a short way for the two that make up a small call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from servery_h2 import frames, inbound
from servery_h2.faults import H2ConnectionError, H2StreamError
from servery_h2.frames import ErrorCode

if TYPE_CHECKING:
    from servery_h2.connection import Connection

MAX_DATA_BYTES: Final = 1 << 20
"""The largest frame the peer may send; what is not DATA must be smaller still."""

_UNPACK: Final = frames.FRAME_HEADER.unpack_from


class Framing:
    """The bytes that came on one connection, on their way to become frames.

    DATA goes on as it comes, whatever the size of its frame. All else is held until it is whole, so
    it is at most a frame of the smallest size every peer may send, or a header list.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        limit = connection.limits.max_header_list_bytes
        self._max_other_bytes = max(frames.DEFAULT_MAX_FRAME, limit)
        self._preface = frames.PREFACE
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Process the frames that `data` completes.

        Raises:
            H2ConnectionError: The peer broke the rules of the connection.
        """
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self._preface:
            data = self._greet(data)
        at = self._consume(data)
        if at < len(data):
            self._rest = data[at:]

    def _greet(self, data: bytes) -> bytes:
        expected = self._preface
        if not data.startswith(expected[: len(data)]):
            raise H2ConnectionError(ErrorCode.PROTOCOL_ERROR, "not an HTTP/2 preface")
        self._preface = expected[len(data) :]
        return data[len(expected) :]

    def _consume(self, data: bytes) -> int:
        """Process the frames in `data`; return how much of it was used."""
        at, end = 0, len(data)
        connection = self._connection
        inflow, streams, heads = connection.inflow, connection.streams, connection.heads.cached
        if inflow.left:
            at = inflow.more(data, 0)
        while end - at >= frames.FRAME_HEADER_BYTES:
            high, low, kind, flags, stream_id = _UNPACK(data, at)
            length = high << 8 | low
            start = at + frames.FRAME_HEADER_BYTES
            stop = start + length
            if stop > end:
                if self._begins_body(kind, length):
                    return self._begin_body(data, start, length, flags, stream_id)
                return at
            at = stop
            if kind == frames.DATA and flags == frames.END_STREAM:
                stream = streams.get(stream_id)
                if (
                    stream is not None
                    and stream.whole
                    and connection.block is None
                    and inflow.whole(stream, data, start, stop)
                ):
                    continue
            elif kind == frames.HEADERS and flags == frames.END_HEADERS:
                head = heads.get(data[start:stop])
                if head is not None and self._may_open(stream_id):
                    connection.open(stream_id, head, end_stream=False)
                    continue
            if length > (MAX_DATA_BYTES if kind == frames.DATA else self._max_other_bytes):
                raise H2ConnectionError(ErrorCode.FRAME_SIZE_ERROR, "frame too large")
            try:
                inbound.receive(
                    connection, kind, flags, stream_id & frames.MAX_STREAM_ID, data[start:stop]
                )
            except H2StreamError as fault:
                connection.fail_stream(fault)
        return at

    def _may_open(self, stream_id: int) -> bool:
        connection = self._connection
        return (
            connection.last_id < stream_id <= frames.MAX_STREAM_ID
            and stream_id & 1 == 1
            and connection.block is None
        )  # Blocks are remembered only after the greeting.

    def _begins_body(self, kind: int, length: int) -> bool:
        """Tell whether a frame that is not complete yet may be processed as it comes."""
        if length > (MAX_DATA_BYTES if kind == frames.DATA else self._max_other_bytes):
            raise H2ConnectionError(ErrorCode.FRAME_SIZE_ERROR, "frame too large")
        connection = self._connection
        return kind == frames.DATA and connection.block is None and connection.life.greeted

    def _begin_body(self, data: bytes, start: int, length: int, flags: int, stream_id: int) -> int:
        pad_length: int | None = None
        if flags & frames.PADDED:
            if start == len(data):
                return start - frames.FRAME_HEADER_BYTES
            pad_length = data[start]
            start += 1
        inflow = self._connection.inflow
        inflow.begin(stream_id & frames.MAX_STREAM_ID, length, flags, pad_length)
        return inflow.more(data, start)
