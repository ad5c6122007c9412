"""What leaves a connection: frames gathered into few writes, within the windows of the peer."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from servery_h2 import frames
from servery_h2.faults import H2ConnectionError, H2StreamError, calm
from servery_h2.frames import ErrorCode

Piece = bytes | memoryview

_WRITE_HIGH_BYTES: Final = 1 << 20
_TURN_BYTES: Final = 1 << 20  # Written before the socket is asked whether it wants more.
_LARGEST_FRAME: Final = 256 << 10
_COPY_BYTES: Final = 32 << 10  # Below it one copy is cheaper than one more buffer to write.


class Sending:
    """The sending half of one stream."""

    __slots__ = ("pending", "progress_at", "stream_id", "trailers", "window")

    def __init__(self, stream_id: int, window: int) -> None:
        self.stream_id = stream_id
        self.window = window
        self.pending: deque[Piece] | None = None
        """DATA that waits for window or socket."""
        self.trailers: bytes | None = None
        """What ends the stream after the DATA: a header block; if empty, END_STREAM on DATA."""
        self.progress_at = 0.0
        """When DATA began to wait, or last went."""


class SendingOwner(Protocol):
    """Who wants to know what became of a stream's data."""

    def on_drained(self, stream_id: int) -> None:
        """Nothing of the stream waits any more."""

    def on_end_sent(self, stream_id: int) -> None:
        """END_STREAM left."""


class Outbox:
    """Gathers frames and writes them once per loop iteration; holds back DATA that may not go.

    Args:
        transport: Where to write.
        loop: The loop of `transport`.
        owner: Told about streams.
        max_backlog_bytes: What answers to control frames may amount to while the peer does not
            read.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        owner: SendingOwner,
        max_backlog_bytes: int,
    ) -> None:
        transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        self._transport = transport
        self._loop = loop
        self._owner = owner
        self._max_backlog = max_backlog_bytes
        self._backlog = 0
        self._frames: list[Piece] = []
        self._large = False
        self._scheduled = False
        self.held = False
        """Set while input is processed: the writing is done by whoever set it."""
        self.paused = False
        """The socket takes no more for now."""
        self.window = frames.DEFAULT_WINDOW
        """Bytes of DATA the peer still takes on all streams."""
        self.initial_window = frames.DEFAULT_WINDOW
        self.max_frame = frames.DEFAULT_MAX_FRAME
        self.blocked: dict[int, Sending] = {}
        """Streams with DATA that waits, in turn."""
        self.useful = 0
        """Frames of calls sent so far."""

    def put(self, frame: Piece) -> None:
        """Send `frame` in order, not before this iteration of the loop ends."""
        self._frames.append(frame)
        self.useful += 1
        if not (self.held or self._scheduled):
            self._schedule(self.flush)

    def answer(self, frame: bytes) -> None:
        """Send the answer to a control frame.

        Raises:
            H2ConnectionError: Too many wait for a peer that does not read.
        """
        if self.paused:
            self._backlog += len(frame)
            if self._backlog > self._max_backlog:
                raise calm("the peer does not read")
        self.put(frame)
        self.useful -= 1

    def flush(self) -> None:
        """Write what was gathered."""
        self._scheduled = False
        out = self._frames
        if not out:
            return
        self._frames = []
        if self._transport.is_closing():
            return
        if self._large:
            self._large = False
            self._transport.writelines(out)
        else:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def fits(self, sending: Sending, size: int) -> bool:
        """Tell whether `size` bytes of DATA may go at once as one frame."""
        return (
            size <= sending.window
            and size <= self.window
            and size <= self.max_frame
            and not self.paused
            and sending.pending is None
        )

    def data(self, sending: Sending, *pieces: Piece) -> bool:
        """Send DATA, as much as may go now; return whether all of it went."""
        if sending.pending is None:
            sending.pending = deque(pieces)
            sending.progress_at = self._loop.time()
            self.blocked[sending.stream_id] = sending
        else:
            sending.pending.extend(pieces)
        self.pump()
        return sending.pending is None

    def end(self, sending: Sending, trailers: bytes) -> None:
        """End the stream with `trailers` once its DATA went."""
        sending.trailers = trailers
        if sending.pending is None:
            self._end(sending)

    def forget(self, sending: Sending) -> None:
        """Drop what waits: the stream was reset."""
        sending.pending = None
        self.blocked.pop(sending.stream_id, None)

    def pump(self) -> None:
        """Send DATA of the waiting streams in turn, as windows and socket allow."""
        left = _TURN_BYTES
        while self.blocked and self.window > 0 and not self.paused:
            before = left
            for sending in list(self.blocked.values()):
                left -= self._some(sending)
            if left == before:
                return
            if left <= 0:
                self.flush()
                if not self.paused and self.blocked:
                    self._schedule(self.pump_and_flush)
                return

    def pump_and_flush(self) -> None:
        """`pump`, then write."""
        self._scheduled = False
        self.pump()
        self.flush()

    def resume(self) -> None:
        """The socket takes more."""
        self.paused = False
        self._backlog = 0
        self.pump_and_flush()

    def grant(self, sending: Sending | None, increment: int) -> None:
        """Widen the window of a stream, or of the connection.

        Raises:
            H2StreamError: The stream's is above 2^31-1.
            H2ConnectionError: The connection's is.
        """
        if sending is None:
            self.window += increment
            if self.window > frames.MAX_WINDOW:
                raise H2ConnectionError(ErrorCode.FLOW_CONTROL_ERROR, "window overflow")
        else:
            sending.window += increment
            if sending.window > frames.MAX_WINDOW:
                raise H2StreamError(
                    sending.stream_id, ErrorCode.FLOW_CONTROL_ERROR, "window overflow"
                )
        if self.blocked:
            self.pump()

    def _some(self, sending: Sending) -> int:
        """Send at most one frame of `sending`; return its size."""
        pending = sending.pending
        if not pending:
            return 0
        piece = pending[0]
        size = min(len(piece), sending.window, self.window, self.max_frame, _LARGEST_FRAME)
        if size <= 0:
            return 0
        sending.window -= size
        self.window -= size
        sending.progress_at = self._loop.time()
        if size == len(piece):
            pending.popleft()
            part = piece
        else:
            view = memoryview(piece)
            part, pending[0] = view[:size], view[size:]
        head = frames.frame_header(size, frames.DATA, 0, sending.stream_id)
        if size < _COPY_BYTES:
            self.put(head + part)
        else:
            self._large = True
            self.put(head)
            self.put(part)
        if not pending:
            sending.pending = None
            del self.blocked[sending.stream_id]
            if sending.trailers is not None:
                self._end(sending)
            else:
                self._owner.on_drained(sending.stream_id)
        return size

    def _end(self, sending: Sending) -> None:
        if sending.trailers:
            self.put(
                frames.headers(sending.stream_id, sending.trailers, self.max_frame, end_stream=True)
            )
        else:
            self.put(frames.frame(frames.DATA, frames.END_STREAM, sending.stream_id))
        self._owner.on_end_sent(sending.stream_id)

    def _schedule(self, callback: Callable[[], None]) -> None:
        self._scheduled = True
        self._loop.call_soon(callback)
