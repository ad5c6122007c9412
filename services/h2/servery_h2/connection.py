"""One HTTP/2 connection as an asyncio protocol: bytes in, frames taken apart, streams served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final, cast

import grpc

from servery_h2 import calls, frames
from servery_h2.faults import H2ConnectionError, H2StreamError
from servery_h2.frames import ErrorCode
from servery_h2.framing import MAX_DATA_BYTES, Framing
from servery_h2.header_block import HeaderReader
from servery_h2.host import Host
from servery_h2.inflow import Inflow
from servery_h2.lifecycle import Lifecycle
from servery_h2.limits import Tolerance
from servery_h2.outbox import Outbox
from servery_h2.peer import auth_context_of, name_of
from servery_h2.request import RequestHead, RequestParser
from servery_h2.stream import Stream

log = logging.getLogger(__name__)

_REMEMBERED_RESETS: Final = 1_000
_NO_DEADLINE_S: Final = 1e6  # Some clients send decades when they mean none.
_LINGER_S: Final = 5.0  # For the last bytes to leave, once a connection is over.


class Connection(asyncio.Protocol):
    """The server's side of one connection.

    Args:
        host: What all connections of a server share.
        loop: The running loop.
    """

    out: Outbox
    life: Lifecycle
    _transport: asyncio.Transport

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        limits = host.limits
        self.host = host
        self.limits = limits
        self.loop = loop
        self.peer = ""
        self.streams: dict[int, Stream] = {}
        self.last_id = 0
        self.num_calls = 0
        """Calls that the peer has begun, and that were taken."""
        self.max_list_bytes = 1 << 16
        """Largest header list the peer takes."""
        self.block: tuple[int, int, list[bytes]] | None = None
        """Stream, flags and parts of a header block that CONTINUATION goes on."""
        self.heads: HeaderReader[RequestHead] = HeaderReader(
            4 * limits.max_header_list_bytes, RequestParser(limits.max_header_list_bytes)
        )
        self.tolerance = Tolerance(limits, loop.time)
        self.inflow = Inflow(self)
        self.reset_ids: dict[int, int] = {}
        """Streams we reset of late, and how much DATA for them may still be on its way."""
        self._framing = Framing(self)
        self._over = False
        self._over_at = 0.0

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the peer, unless there is no room for it."""
        self._transport = cast(asyncio.Transport, transport)
        limits = self.limits
        self.out = Outbox(self._transport, self.loop, self, limits.max_control_backlog_bytes)
        self.life = Lifecycle(self, limits, self.loop.time())
        tls = transport.get_extra_info("ssl_object")
        speaks_h2 = tls is None or tls.selected_alpn_protocol() == "h2"
        if not speaks_h2 or not self.host.admit(self):
            self.abort()
            return
        self.peer = name_of(transport)
        self.out.put(
            frames.settings(
                {
                    frames.MAX_CONCURRENT_STREAMS: limits.max_concurrent_streams,
                    frames.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                    frames.MAX_FRAME_SIZE: MAX_DATA_BYTES,
                    frames.MAX_HEADER_LIST_SIZE: limits.max_header_list_bytes,
                }
            )
        )
        self.inflow.open()

    def data_received(self, data: bytes) -> None:
        """Take apart what came; what it caused leaves in one write."""
        if self._over:
            return
        self.life.heard(self.loop.time())
        self.out.held = True
        try:
            self._framing.feed(data)
        except H2ConnectionError as fault:
            self._fail(fault)
        finally:
            self.out.held = False
        self.out.flush()

    def pause_writing(self) -> None:
        """The socket is full."""
        self.out.paused = True

    def resume_writing(self) -> None:
        """The socket has room."""
        self.out.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what still runs."""
        self._over = True
        self.host.forget(self)
        for stream in list(self.streams.values()):
            self.close(stream, cancelled=True)

    # What others in this package call.

    def auth_context(self) -> Mapping[str, list[bytes]]:
        """What TLS proved about the peer."""
        return auth_context_of(self._transport)

    def open(self, stream_id: int, head: RequestHead, *, end_stream: bool) -> None:
        """Begin the call that a header block asks for."""
        self.last_id = stream_id
        if stream_id > self.life.last_accepted:
            return
        if len(self.streams) >= self.limits.max_concurrent_streams:
            self.tolerance.spend_reset(self.num_calls)
            self._reset_id(stream_id, ErrorCode.REFUSED_STREAM)
            return
        if head.malformed:
            self.fail_stream(H2StreamError(stream_id, ErrorCode.PROTOCOL_ERROR, head.malformed))
            return
        method = self.host.methods.find(head.path) if head.http_status == 200 else None
        stream = Stream(self, stream_id, head, method)
        self.num_calls += 1
        self.streams[stream_id] = stream
        stream.received_at = self.loop.time()
        stream.remote_closed = end_stream
        if head.timeout_s is not None and head.timeout_s < _NO_DEADLINE_S:
            stream.deadline = stream.received_at + head.timeout_s
        if head.refusal is not None:
            stream.finish(*head.refusal)
        elif method is None and head.http_status == 200:
            stream.finish(grpc.StatusCode.UNIMPLEMENTED, "this server has no such method")
        elif method is not None and method.streams_requests:
            calls.start_streaming(stream, method)
        else:
            stream.whole = method is not None and head.content_length is None
        if end_stream and not stream.closed:
            self.inflow.end(stream)

    def close(self, stream: Stream, *, cancelled: bool) -> None:
        """Forget a stream."""
        if self.streams.pop(stream.stream_id, None) is None:
            return
        if stream.held_bytes:
            self.inflow.release(stream)
        stream.close(cancelled=cancelled)
        if self.life.draining:
            self.close_if_done()

    def reset(self, stream: Stream, code: ErrorCode, *, cancelled: bool = True) -> None:
        """End a stream at once."""
        self._reset_id(stream.stream_id, code)
        self.close(stream, cancelled=cancelled)

    def fail_stream(self, fault: H2StreamError) -> None:
        """Reset the stream whose rules were broken, and hold it against the peer."""
        self.tolerance.spend_reset(self.num_calls)
        self._reset_id(fault.stream_id, fault.code)
        stream = self.streams.get(fault.stream_id)
        if stream is not None:
            self.close(stream, cancelled=True)

    def on_drained(self, stream_id: int) -> None:
        """Let the handler of a stream send more."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.on_drained()

    def on_end_sent(self, stream_id: int) -> None:
        """Close a stream whose response is complete."""
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        if stream.remote_closed:
            self.close(stream, cancelled=stream.cancelled)
        else:
            self.reset(stream, ErrorCode.NO_ERROR, cancelled=stream.cancelled)

    def tick(self, now: float) -> None:
        """Do what time demands; about once a second."""
        if self._over:
            if now - self._over_at > _LINGER_S:
                self.abort()
            return
        self.life.tick(now)
        for stream in list(self.streams.values()):
            if stream.deadline is not None and stream.deadline < now and stream.timer is None:
                stream.expire()
            elif stream.stalls(now, self.limits.stall_s):
                self.reset(stream, ErrorCode.CANCEL)

    def close_if_done(self) -> None:
        """Close a drained connection that has no streams left."""
        if not self.streams and self.life.last_accepted != frames.MAX_STREAM_ID:
            self.shut()

    def shut(self) -> None:
        """Close after what was written; calls that still run are cancelled."""
        self.out.flush()
        if not self._over:
            self._over = True
            self._over_at = self.loop.time()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._over = True
        self._transport.abort()

    # Ending it.

    def _fail(self, fault: H2ConnectionError) -> None:
        log.info("%s: %s: %s", self.peer, fault.code.name, fault.reason)
        self.out.put(frames.goaway(self.last_id, fault.code, fault.reason))
        if self.out.paused:  # It would wait for a peer that does not read.
            self.abort()
        else:
            self.shut()

    def _reset_id(self, stream_id: int, code: ErrorCode) -> None:
        if len(self.reset_ids) >= _REMEMBERED_RESETS:
            del self.reset_ids[next(iter(self.reset_ids))]
        self.reset_ids[stream_id] = self.limits.stream_window_bytes
        self.out.put(frames.rst_stream(stream_id, code))
