"""One call as a stream: what came, what goes, and how it ends."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from servery_h2 import frames, response
from servery_h2.compression import IDENTITY
from servery_h2.faults import Metadata, StatusError
from servery_h2.frames import ErrorCode
from servery_h2.messages import MessageReader, Packed
from servery_h2.outbox import Piece, Sending
from servery_h2.request import Metadatum, RequestHead

if TYPE_CHECKING:
    from servery_h2.connection import Connection
    from servery_h2.methods import Method

_JOIN_BYTES = 64 << 10  # Below it one copy is cheaper than one more frame.


class Stream(Sending):
    """The server's side of one call.

    Raw handlers get it as their `call`: `metadata`, `time_remaining`, `peer`, `connection`.
    """

    __slots__ = (
        "cancelled",
        "closed",
        "connection",
        "deadline",
        "drained",
        "head",
        "head_sent",
        "held_bytes",
        "inbox",
        "method",
        "on_done",
        "owed",
        "reader",
        "received_at",
        "received_bytes",
        "recv_window",
        "remote_closed",
        "task",
        "timer",
        "unread",
        "waiting",
        "whole",
    )

    def __init__(
        self,
        connection: Connection,
        stream_id: int,
        head: RequestHead,
        method: Method | None,
    ) -> None:
        super().__init__(stream_id, connection.out.initial_window)
        self.connection = connection
        self.head = head
        self.method = method
        self.reader: MessageReader | None = None
        self.inbox: deque[Packed] | None = None
        self.recv_window = connection.limits.stream_window_bytes
        self.owed = 0  # Consumed, not yet given back to the peer's window.
        self.unread = 0  # Received, not yet consumed by the handler.
        self.held_bytes = 0  # Counted in the memory of the server.
        self.received_bytes = 0
        self.received_at = 0.0
        self.remote_closed = False
        self.whole = False
        """The request is one message, and nothing of it came yet."""
        self.closed = False
        self.cancelled = False
        self.head_sent = False
        self.deadline: float | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Future[Any] | None = None
        self.waiting: asyncio.Future[None] | None = None
        self.drained: asyncio.Future[None] | None = None
        self.on_done: list[Callable[[], None]] | None = None

    @property
    def metadata(self) -> tuple[Metadatum, ...]:
        """What the caller attached."""
        return self.head.metadata

    @property
    def peer(self) -> str:
        """Who calls, such as `ipv4:127.0.0.1:40000`."""
        return self.connection.peer

    def time_remaining(self) -> float | None:
        """Seconds to the deadline of the caller; None without one."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - self.connection.loop.time())

    async def read(self) -> bytes | None:
        """Return the next request message; None after the last.

        Raises:
            asyncio.InvalidStateError: The call is over.
            StatusError: The message cannot be decompressed.
        """
        while not self.inbox:
            if self.remote_closed:
                return None
            self.require_open()
            self.waiting = self.connection.loop.create_future()
            await self.waiting
        return self.take()

    def take(self) -> bytes:
        """Take the first message of the inbox, which must have one.

        Raises:
            StatusError: It cannot be decompressed.
        """
        assert self.inbox and self.reader is not None  # noqa: S101, PT018 (what callers checked)
        packed = self.inbox.popleft()
        if not self.inbox:
            self.connection.inflow.consumed(self)
        return self.reader.plain(packed)

    def begin(self, metadata: Metadata = (), encoding: str = IDENTITY) -> None:
        """Send the response headers.

        Raises:
            asyncio.InvalidStateError: They were sent, or the call is over.
        """
        self.require_open()
        if self.head_sent:
            raise asyncio.InvalidStateError("the response headers were sent before")
        self.head_sent = True
        plain = not metadata and encoding == IDENTITY
        block = response.HEAD_BLOCK if plain else response.head_block(metadata, encoding)
        out = self.connection.out
        out.put(frames.headers(self.stream_id, block, out.max_frame, end_stream=False))

    async def send(self, message: bytes, *, compressed: bool = False) -> None:
        """Send a response message; return when the peer has room for the next.

        Raises:
            asyncio.InvalidStateError: The call is over.
        """
        self.require_open()
        while self.drained is not None:
            await asyncio.shield(self.drained)
            self.require_open()
        if not self.put_message(message, compressed=compressed):
            self.drained = self.connection.loop.create_future()
            await asyncio.shield(self.drained)

    def put_message(self, message: bytes, *, compressed: bool = False) -> bool:
        """Queue a response message after the headers; return whether it is all on its way.

        Raises:
            StatusError: It is larger than the server may send.
        """
        limit = self.connection.limits.max_send_message_bytes
        if len(message) > limit:
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the response message is {len(message)} bytes; this server sends at most {limit}",
            )
        prefix = (b"\x01" if compressed else b"\x00") + len(message).to_bytes(4)
        pieces: tuple[Piece, ...] = (prefix, memoryview(message))
        if len(message) < _JOIN_BYTES:
            pieces = (prefix + message,)
        return self.connection.out.data(self, *pieces)

    def reply(self, message: bytes, trailing_metadata: Metadata = ()) -> None:
        """Answer a unary call with success.

        Args:
            message: Serialized.
            trailing_metadata: Keys and values that can be sent; they are not checked.
        """
        if self.closed:
            return
        out = self.connection.out
        size = len(message) + 5
        limit = self.connection.limits.max_send_message_bytes
        if len(message) <= limit and not self.head_sent and out.fits(self, size):
            trailers = self._ok_block(trailing_metadata)
            if len(trailers) <= out.max_frame:
                self.head_sent = True
                self.window -= size
                out.window -= size
                out.put(response.unary_ok(self.stream_id, message, trailers))
                self.connection.on_end_sent(self.stream_id)
                return
        try:
            if not self.head_sent:
                self.begin()
            self.put_message(message)
        except StatusError as error:
            self.finish(error.code, error.details)
        else:
            self.finish(grpc.StatusCode.OK, "", trailing_metadata)

    def _ok_block(self, metadata: Metadata) -> bytes:
        if not metadata:
            return response.OK_BLOCK
        most = self.connection.max_list_bytes
        return response.trailer_block(grpc.StatusCode.OK, "", metadata, most, alone=False)

    def finish(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: response.Pairs = ()
    ) -> None:
        """End the call with a status, after the messages sent before. Only the first one counts."""
        if self.closed or self.trailers is not None:
            return
        block = response.trailer_block(
            code,
            details,
            tuple(trailing_metadata),
            self.connection.max_list_bytes,
            alone=not self.head_sent,
        )
        if code is not grpc.StatusCode.OK and self.pending is not None and self.cancelled:
            self.connection.out.forget(self)  # A deadline does not wait for window.
            self.connection.reset(self, ErrorCode.CANCEL)
            return
        self.connection.out.end(self, block)

    def expire(self) -> None:
        """The deadline of the caller passed."""
        if self.closed:
            return
        self.cancelled = True
        self.connection.tolerance.expect_reset()
        self.finish(grpc.StatusCode.DEADLINE_EXCEEDED, "deadline exceeded")

    def close(self, *, cancelled: bool) -> None:
        """Let go of everything: END_STREAM went both ways, or either side reset."""
        self.closed = True
        # Asked for one by one, since most streams have none of these, and calls cost.
        if self.pending is not None:
            self.connection.out.forget(self)
        if self.timer is not None:
            self.timer.cancel()
        if cancelled:
            self.cancelled = True
            if self.task is not None:
                self.task.cancel()
        if self.waiting is not None:
            self.wake()
        if self.drained is not None:
            self.on_drained()
        self.inbox = None
        if self.on_done is not None:
            for callback in self.on_done:
                self.connection.loop.call_soon(callback)
            self.on_done = None

    def stalls(self, now: float, patience_s: float) -> bool:
        """Tell whether the peer owes bytes or window for longer than `patience_s`."""
        if self.pending is not None:
            return now - self.progress_at > patience_s
        if self.remote_closed or self.inbox:
            return False
        streams = self.method is not None and self.method.streams_requests
        begun = self.reader is not None and self.reader.inside
        return (begun or not streams) and now - self.received_at > patience_s

    def wake(self) -> None:
        """Let `read` look again."""
        if self.waiting is not None:
            if not self.waiting.done():
                self.waiting.set_result(None)
            self.waiting = None

    def on_drained(self) -> None:
        """Let `send` go on."""
        if self.drained is not None:
            if not self.drained.done():
                self.drained.set_result(None)
            self.drained = None

    def require_open(self) -> None:
        """Refuse to go on after the end."""
        if self.closed or self.trailers is not None:
            raise asyncio.InvalidStateError("the call is over")
