"""What every kind of frame does to a connection, and which of them break the rules."""

# ruff: noqa: ARG001 (all kinds of frame have one signature)

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from servery_h2 import frames
from servery_h2.faults import H2ConnectionError, H2StreamError, calm
from servery_h2.frames import ErrorCode
from servery_h2.request import check_trailers

if TYPE_CHECKING:
    from servery_h2.connection import Connection

_MAX_SETTINGS: Final = 64  # Of one frame; ten are defined.


def receive(connection: Connection, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
    """Process one whole frame.

    Raises:
        H2StreamError: It breaks the rules of its stream.
        H2ConnectionError: It breaks the rules of the connection.
    """
    if connection.block is not None and (
        kind != frames.CONTINUATION or connection.block[0] != stream_id
    ):
        raise _protocol_error("a header block was interrupted")
    if not connection.life.greeted and (kind != frames.SETTINGS or flags & frames.ACK):
        raise _protocol_error("the first frame is not SETTINGS")
    if kind < len(_KINDS):
        _KINDS[kind](connection, flags, stream_id, payload)
    else:
        connection.tolerance.spend_control(
            connection.out.useful
        )  # Unknown kinds are ignored (RFC 9113 section 5.5).


def _on_data(connection: Connection, flags: int, stream_id: int, payload: bytes) -> None:
    pad_length: int | None = None
    if flags & frames.PADDED:
        if not payload:
            raise _protocol_error("padding is longer than its frame")
        pad_length = payload[0]
    connection.inflow.begin(stream_id, len(payload), flags, pad_length)
    connection.inflow.more(payload, 0 if pad_length is None else 1)


def _on_headers(connection: Connection, flags: int, stream_id: int, payload: bytes) -> None:
    if stream_id == 0:
        raise _protocol_error("HEADERS on stream 0")
    at, end = 0, len(payload)
    if flags & frames.PADDED:
        if not payload or payload[0] >= end:
            raise _protocol_error("padding is longer than its frame")
        at, end = 1, end - payload[0]
    depends_on_itself = False
    if flags & frames.PRIORITIZED:
        if end - at < 5:
            raise H2ConnectionError(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short")
        depends_on_itself = _dependency(payload[at:]) == stream_id
        at += 5
    block = payload[at:end]
    if flags & frames.END_HEADERS:
        _on_block(connection, stream_id, block, end_stream=bool(flags & frames.END_STREAM))
        if depends_on_itself:
            raise H2StreamError(stream_id, ErrorCode.PROTOCOL_ERROR, "depends on itself")
    else:
        connection.block = (stream_id, flags, [block])


def _on_continuation(connection: Connection, flags: int, stream_id: int, payload: bytes) -> None:
    if connection.block is None:
        raise _protocol_error("CONTINUATION without HEADERS")
    _, first_flags, parts = connection.block
    parts.append(payload)
    limits = connection.limits
    if len(parts) > limits.max_continuations + 1:
        raise calm("too many CONTINUATION frames")
    if sum(map(len, parts)) > 4 * limits.max_header_list_bytes:
        raise calm("header block too large")
    if flags & frames.END_HEADERS:
        connection.block = None
        end_stream = bool(first_flags & frames.END_STREAM)
        _on_block(connection, stream_id, b"".join(parts), end_stream=end_stream)


def _on_block(connection: Connection, stream_id: int, block: bytes, *, end_stream: bool) -> None:
    """A whole header block: it begins a stream, or ends it as trailers."""
    stream = connection.streams.get(stream_id)
    if stream is not None:
        fault = check_trailers(connection.heads.fields(block))
        if stream.remote_closed:
            raise H2StreamError(stream_id, ErrorCode.STREAM_CLOSED, "HEADERS after END_STREAM")
        if fault or not end_stream:
            raise H2StreamError(stream_id, ErrorCode.PROTOCOL_ERROR, fault or "trailers must end")
        connection.inflow.end(stream)
    elif stream_id > connection.last_id and stream_id & 1:
        connection.open(stream_id, connection.heads.read(block), end_stream=end_stream)
    elif stream_id in connection.reset_ids:
        connection.heads.fields(block)  # It was on its way; the table must not miss it.
        connection.tolerance.spend_control(connection.out.useful)
    elif stream_id == connection.last_id:
        raise H2ConnectionError(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream")
    else:
        raise _protocol_error("stream ids must be odd and grow")


def _on_priority(connection: Connection, flags: int, stream_id: int, payload: bytes) -> None:
    connection.tolerance.spend_control(connection.out.useful)
    if stream_id == 0:
        raise _protocol_error("PRIORITY on stream 0")
    if len(payload) != 5:
        raise H2StreamError(stream_id, ErrorCode.FRAME_SIZE_ERROR, "PRIORITY is 5 bytes")
    if _dependency(payload) == stream_id:
        raise H2StreamError(stream_id, ErrorCode.PROTOCOL_ERROR, "depends on itself")


def _on_rst_stream(connection: Connection, flags: int, stream_id: int, payload: bytes) -> None:
    _require(len(payload) == 4)
    if stream_id == 0 or _is_idle(connection, stream_id):
        raise _protocol_error("RST_STREAM on an idle stream")
    stream = connection.streams.get(stream_id)
    now = connection.loop.time()
    if stream is None or now - stream.received_at < connection.limits.reset_patience_s:
        connection.tolerance.spend_reset(connection.num_calls)
    if stream is not None:
        connection.close(stream, cancelled=True)


def _on_settings(connection: Connection, flags: int, stream_id: int, payload: bytes) -> None:
    connection.tolerance.spend_control(connection.out.useful)
    if stream_id:
        raise _protocol_error("SETTINGS on a stream")
    if flags & frames.ACK:
        _require(not payload)
        return
    _require(len(payload) % 6 == 0)
    if len(payload) > 6 * _MAX_SETTINGS:
        raise calm("too many settings")
    for at in range(0, len(payload), 6):
        key = int.from_bytes(payload[at : at + 2])
        _apply_setting(connection, key, int.from_bytes(payload[at + 2 : at + 6]))
    connection.life.greeted = True
    connection.out.answer(frames.frame(frames.SETTINGS, frames.ACK, 0))
    connection.out.pump()  # After the ACK: what a wider window allows comes later than its answer.


def _apply_setting(connection: Connection, key: int, value: int) -> None:
    out = connection.out
    if key == frames.INITIAL_WINDOW_SIZE:
        if value > frames.MAX_WINDOW:
            raise H2ConnectionError(ErrorCode.FLOW_CONTROL_ERROR, "initial window too large")
        change, out.initial_window = value - out.initial_window, value
        for stream in connection.streams.values():
            stream.window += change
            if stream.window > frames.MAX_WINDOW:
                raise H2ConnectionError(ErrorCode.FLOW_CONTROL_ERROR, "window overflow")
    elif key == frames.MAX_FRAME_SIZE:
        if not frames.DEFAULT_MAX_FRAME <= value < 1 << 24:
            raise _protocol_error("MAX_FRAME_SIZE out of range")
        out.max_frame = value
    elif key == frames.MAX_HEADER_LIST_SIZE:
        connection.max_list_bytes = value
    elif key == frames.ENABLE_PUSH and value > 1:
        raise _protocol_error("ENABLE_PUSH is 0 or 1")


def _on_push_promise(connection: Connection, flags: int, stream_id: int, payload: bytes) -> None:
    raise _protocol_error("clients do not push")


def _on_ping(connection: Connection, flags: int, stream_id: int, payload: bytes) -> None:
    connection.tolerance.spend_control(connection.out.useful)
    if stream_id:
        raise _protocol_error("PING on a stream")
    _require(len(payload) == 8)
    if flags & frames.ACK:
        connection.life.on_ping_ack(payload)
        return
    connection.life.on_ping(connection.loop.time(), connection.out.useful)
    connection.out.answer(frames.ping(payload, ack=True))


def _on_goaway(connection: Connection, flags: int, stream_id: int, payload: bytes) -> None:
    connection.tolerance.spend_control(connection.out.useful)
    if stream_id:
        raise _protocol_error("GOAWAY on a stream")
    _require(len(payload) >= 8)


def _on_window_update(connection: Connection, flags: int, stream_id: int, payload: bytes) -> None:
    connection.tolerance.spend_control(connection.out.useful)
    _require(len(payload) == 4)
    increment = int.from_bytes(payload) & frames.MAX_WINDOW
    if stream_id == 0:
        if not increment:
            raise _protocol_error("WINDOW_UPDATE of 0")
        connection.out.grant(None, increment)
        return
    if _is_idle(connection, stream_id):
        raise _protocol_error("WINDOW_UPDATE on an idle stream")
    stream = connection.streams.get(stream_id)
    if stream is None:
        return
    if not increment:
        raise H2StreamError(stream_id, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
    connection.out.grant(stream, increment)


def _is_idle(connection: Connection, stream_id: int) -> bool:
    return stream_id > connection.last_id or not stream_id & 1


def _dependency(payload: bytes) -> int:
    return int.from_bytes(payload[:4]) & frames.MAX_STREAM_ID


def _require(right_size: bool) -> None:  # noqa: FBT001
    if not right_size:
        raise H2ConnectionError(ErrorCode.FRAME_SIZE_ERROR, "wrong size of a frame")


def _protocol_error(reason: str) -> H2ConnectionError:
    return H2ConnectionError(ErrorCode.PROTOCOL_ERROR, reason)


_KINDS: Final[tuple[Callable[[Connection, int, int, bytes], None], ...]] = (
    _on_data,
    _on_headers,
    _on_priority,
    _on_rst_stream,
    _on_settings,
    _on_push_promise,
    _on_ping,
    _on_goaway,
    _on_window_update,
    _on_continuation,
)
