"""Response headers and trailers as header blocks, most of them made once."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import base64
import re
from collections.abc import Iterable
from struct import Struct
from typing import Final

import grpc

from servery_h2 import frames
from servery_h2.compression import ENCODINGS, IDENTITY
from servery_h2.header_block import encode_fields, list_bytes

Pairs = Iterable[tuple[str, str | bytes]]

_ACCEPT: Final = ",".join(ENCODINGS).encode()
_STATUS_200: Final = b"\x88"  # Static table entry 8 (RFC 7541 appendix A).
_MAX_DETAILS_BYTES: Final = 4_096
_END: Final = frames.END_HEADERS | frames.END_STREAM
_KEY: Final = re.compile(r"[a-z0-9_.\-]+")
_BODIES: Final = {
    405: b"This is a gRPC server: send POST.\n",
    415: b"This is a gRPC server: send content-type application/grpc.\n",
}


def _head(encoding: str) -> bytes:
    fields = [(b"content-type", b"application/grpc"), (b"grpc-accept-encoding", _ACCEPT)]
    if encoding != IDENTITY:
        fields.append((b"grpc-encoding", encoding.encode()))
    return _STATUS_200 + encode_fields(fields)


_HEADS: Final = {encoding: _head(encoding) for encoding in ENCODINGS}
HEAD_BLOCK: Final = _HEADS[IDENTITY]
"""The headers of a response without metadata or compression."""

OK_BLOCK: Final = encode_fields([(b"grpc-status", b"0")])
"""The trailers of a call that succeeded without metadata."""

_BEFORE: Final = Struct(f">HBBBL{len(HEAD_BLOCK)}sHBBBLBL")


def unary_ok(stream_id: int, message: bytes, trailers: bytes) -> bytes:
    """Return all the frames of a plain successful unary response, each of which fits a frame."""
    size = len(message)
    length = size + 5
    return b"".join(
        (
            _BEFORE.pack(
                *(0, len(HEAD_BLOCK), frames.HEADERS, frames.END_HEADERS, stream_id, HEAD_BLOCK),
                *(length >> 8, length & 0xFF, frames.DATA, 0, stream_id, 0, size),
            ),
            message,
            frames.frame_header(len(trailers), frames.HEADERS, _END, stream_id),
            trailers,
        )
    )


def head_block(metadata: Pairs = (), encoding: str = IDENTITY) -> bytes:
    """Return the header block that begins a response."""
    return _HEADS[encoding] + encode_fields(_encode(metadata))


def trailer_block(
    code: grpc.StatusCode, details: str, metadata: Pairs, max_list_bytes: int, *, alone: bool
) -> bytes:
    """Return the header block that ends a call.

    Args:
        code: The status.
        details: Its message; cut to 4 KiB.
        metadata: Trailing metadata; left out when the peer takes no such list.
        max_list_bytes: What the peer takes.
        alone: No header block was sent before this one.
    """
    if code is grpc.StatusCode.OK and not details and not metadata and not alone:
        return OK_BLOCK
    fields = [(b"grpc-status", str(code.value[0]).encode())]
    if details:
        fields.append((b"grpc-message", percent_encode(details)))
    extra = _encode(metadata)
    if list_bytes(fields) + list_bytes(extra) <= max_list_bytes - 128:  # `:status` and the like.
        fields += extra
    return (HEAD_BLOCK if alone else b"") + encode_fields(fields)


def http_answer(status: int) -> tuple[bytes, bytes]:
    """Return header block and body for a request that is not gRPC."""
    body = _BODIES[status]
    fields = [
        (b":status", str(status).encode()),
        (b"content-type", b"text/plain"),
        (b"content-length", str(len(body)).encode()),
    ]
    return encode_fields(fields), body


def percent_encode(text: str) -> bytes:
    """Encode `grpc-message`: printable ASCII but `%` as it is, other bytes of UTF-8 as `%XX`."""
    raw = text.encode(errors="replace")[:_MAX_DETAILS_BYTES]
    if raw.isascii() and text.isprintable() and b"%" not in raw:
        return raw
    return b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
        for byte in raw
    )


def check_metadata(metadata: Pairs) -> tuple[tuple[str, str | bytes], ...]:
    """Return `metadata` as a tuple.

    Raises:
        ValueError: A key or value cannot be sent.
    """
    pairs = tuple((key, value) for key, value in metadata)
    for key, value in pairs:
        if not _KEY.fullmatch(key):
            raise ValueError(f"metadata key {key!r} must be lowercase letters, digits, '-_.'")
        if key.endswith("-bin") != isinstance(value, bytes):
            raise ValueError(f"metadata {key} must be bytes if, and only if, it ends in -bin")
        if isinstance(value, str) and not (value.isascii() and (value.isprintable() or not value)):
            raise ValueError(f"metadata {key} must be printable ASCII")
    return pairs


def _encode(metadata: Pairs) -> list[tuple[bytes, bytes]]:
    return [
        (
            key.encode(),
            base64.b64encode(value).rstrip(b"=") if isinstance(value, bytes) else value.encode(),
        )
        for key, value in metadata
    ]
