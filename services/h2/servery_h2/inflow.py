"""DATA that comes in: windows, memory, and the way to the handler."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import grpc

from servery_h2 import calls, frames, response
from servery_h2.faults import H2ConnectionError, H2StreamError, StatusError
from servery_h2.frames import ErrorCode
from servery_h2.messages import PREFIX_BYTES, MessageReader
from servery_h2.stream import Stream

if TYPE_CHECKING:
    from servery_h2.connection import Connection

_TINY_BYTES: Final = 256  # DATA that small, and not the last, may be a frame without use.


class Inflow:
    """The receiving half of the flow control of one connection.

    The window of the connection is given back at once, so that a slow handler does not hold up
    other calls. The window of a stream is given back when its handler has taken what came; bytes of
    an unfinished message count as taken, up to the largest message. What is held is counted for the
    whole server.
    """

    def __init__(self, connection: Connection) -> None:
        limits = connection.limits
        self._connection = connection
        self._memory = connection.host.memory
        self._max_message = limits.max_receive_message_bytes
        self._size = max(limits.connection_window_bytes, frames.DEFAULT_WINDOW)
        self._window = self._size
        self._owed = 0
        self._stream_size = limits.stream_window_bytes
        self._stream: Stream | None = None
        self._ends = False
        self._padding = 0
        self.left = 0
        """Bytes to come of a DATA frame that is processed in parts."""

    def open(self) -> None:
        """Tell the peer the window of the connection."""
        if self._size > frames.DEFAULT_WINDOW:
            self._connection.out.put(frames.window_update(0, self._size - frames.DEFAULT_WINDOW))

    def whole(self, stream: Stream, data: bytes, start: int, stop: int) -> bool:
        """Take the only DATA frame of a unary request; False if it is anything less plain."""
        length = stop - start
        size = length - PREFIX_BYTES
        if (
            size < 0
            or data[start]
            or int.from_bytes(data[start + 1 : start + PREFIX_BYTES]) != size
            or size > self._max_message
            or length > stream.recv_window
            or stream.method is None
        ):
            return False
        self._take(length)
        stream.whole = False
        stream.remote_closed = True
        calls.start_unary(stream, stream.method, data[start + PREFIX_BYTES : stop])
        return True

    def begin(self, stream_id: int, length: int, flags: int, pad_length: int | None) -> None:
        """Begin a DATA frame.

        Args:
            stream_id: Where.
            length: Of its payload.
            flags: Of the frame.
            pad_length: The first byte of a padded payload; the bytes after it come by `more`.
        """
        padding = 0 if pad_length is None else pad_length + 1
        if padding > length:
            raise H2ConnectionError(ErrorCode.PROTOCOL_ERROR, "padding is longer than its frame")
        self.left = length if pad_length is None else length - 1
        self._padding = pad_length or 0
        self._ends = bool(flags & frames.END_STREAM)
        self._stream = None
        try:
            self._stream = self._check(stream_id, length, flags, padding)
        except H2StreamError as fault:
            self._connection.fail_stream(fault)

    def more(self, data: bytes, at: int) -> int:
        """Take bytes of the DATA frame from `data[at:]`; return where the rest begins."""
        body = max(0, self.left - self._padding)
        stop = min(len(data), at + self.left)
        self.left -= stop - at
        stream = self._stream
        if stream is not None and not stream.closed:
            try:
                if body and stop > at:
                    self._deliver(stream, memoryview(data)[at : min(stop, at + body)])
                if self._ends and self.left <= self._padding and not stream.closed:
                    self._ends = False
                    self.end(stream)
            except H2StreamError as fault:
                self._connection.fail_stream(fault)
        if not self.left:
            self._stream = None
        return stop

    def end(self, stream: Stream) -> None:
        """The peer has sent everything."""
        expected = stream.head.content_length
        stream.remote_closed = True
        if expected is not None and expected != stream.received_bytes:
            raise H2StreamError(
                stream.stream_id, ErrorCode.PROTOCOL_ERROR, "content-length is wrong"
            )
        if stream.method is None:
            if stream.head.http_status != 200:
                self._answer_http(stream)
        elif stream.method.streams_requests:
            stream.wake()
        else:
            self._start(stream)

    def consumed(self, stream: Stream) -> None:
        """The handler took what there was: give window and memory back."""
        held = stream.reader.have if stream.reader is not None else 0
        self._memory.held -= stream.held_bytes - held
        stream.held_bytes = held
        stream.owed += stream.unread
        stream.unread = 0
        self._give(stream)

    def release(self, stream: Stream) -> None:
        """The stream is over: what it held is free."""
        self._memory.held -= stream.held_bytes
        stream.held_bytes = 0

    def _check(self, stream_id: int, length: int, flags: int, padding: int) -> Stream | None:
        connection = self._connection
        if stream_id == 0:
            raise H2ConnectionError(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
        self._take(length)
        stream = connection.streams.get(stream_id)
        if stream is None:
            if length < _TINY_BYTES:
                connection.tolerance.spend_control(connection.out.useful)
            if stream_id > connection.life.last_accepted:
                return None
            if stream_id in connection.reset_ids:
                connection.reset_ids[stream_id] -= length
                if connection.reset_ids[stream_id] < 0:
                    raise H2ConnectionError(ErrorCode.STREAM_CLOSED, "DATA long after a reset")
                return None
            if stream_id > connection.last_id or not stream_id & 1:
                raise H2ConnectionError(ErrorCode.PROTOCOL_ERROR, "DATA on an idle stream")
            raise H2ConnectionError(ErrorCode.STREAM_CLOSED, "DATA on a closed stream")
        if stream.remote_closed:
            raise H2StreamError(stream_id, ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
        if length < _TINY_BYTES and not flags & frames.END_STREAM:
            connection.tolerance.spend_control(connection.out.useful)
        stream.whole = False
        stream.recv_window -= length
        if stream.recv_window < 0:
            raise H2StreamError(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "window exceeded")
        stream.owed += padding
        return stream

    def _deliver(self, stream: Stream, data: memoryview) -> None:
        size = len(data)
        stream.received_at = self._connection.loop.time()
        stream.received_bytes += size
        expected = stream.head.content_length
        if expected is not None and stream.received_bytes > expected:
            raise H2StreamError(stream.stream_id, ErrorCode.PROTOCOL_ERROR, "too long")
        if stream.method is None:
            return  # Not gRPC: what does not fit the first window never comes.
        try:
            self._read(stream, data)
        except StatusError as error:
            stream.cancelled = True
            stream.finish(error.code, error.details)

    def _read(self, stream: Stream, data: memoryview) -> None:
        size = len(data)
        if stream.reader is None:
            stream.reader = MessageReader(stream.head.encoding, self._max_message)
            stream.inbox = deque()
        assert stream.inbox is not None and stream.method is not None  # noqa: S101, PT018
        if self._memory.held + size > self._memory.limit:
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "this server holds too many requests; try again"
            )
        self._memory.held += size
        stream.held_bytes += size
        messages = stream.reader.feed(data)
        if messages:
            stream.inbox.extend(messages)
            if stream.method.streams_requests:
                stream.wake()
            elif len(stream.inbox) > 1:
                raise StatusError(grpc.StatusCode.INTERNAL, "more than one request message")
        if stream.inbox:
            stream.unread += size
        else:
            stream.owed += size
            self._give(stream)

    def _start(self, stream: Stream) -> None:
        """Run a unary handler on the message that came."""
        assert stream.method is not None  # noqa: S101
        if not stream.inbox or stream.reader is None or stream.reader.inside:
            stream.finish(grpc.StatusCode.INTERNAL, "there is no complete request message")
            return
        try:
            message = stream.take()
        except StatusError as error:
            stream.finish(error.code, error.details)
        else:
            calls.start_unary(stream, stream.method, message)

    def _answer_http(self, stream: Stream) -> None:
        out = self._connection.out
        block, body = response.http_answer(stream.head.http_status)
        out.put(frames.headers(stream.stream_id, block, out.max_frame, end_stream=False))
        stream.trailers = b""
        out.data(stream, body)

    def _take(self, length: int) -> None:
        self._window -= length
        if self._window < 0:
            raise H2ConnectionError(ErrorCode.FLOW_CONTROL_ERROR, "window exceeded")
        self._owed += length
        if self._owed >= self._size >> 1:
            self._connection.out.put(frames.window_update(0, self._owed))
            self._window += self._owed
            self._owed = 0

    def _give(self, stream: Stream) -> None:
        if stream.owed >= self._stream_size >> 1 and not (stream.remote_closed or stream.closed):
            self._connection.out.put(frames.window_update(stream.stream_id, stream.owed))
            stream.recv_window += stream.owed
            stream.owed = 0
