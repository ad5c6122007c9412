"""From the header list of a request to what the call needs to know, checked once."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import base64
import binascii
import contextlib
import re
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import grpc

from servery_h2.compression import ENCODINGS, IDENTITY
from servery_h2.header_block import Fields, list_bytes

_NAME: Final = re.compile(rb"[a-z0-9!#$%&'*+\-.^_`|~]+")
_FORBIDDEN_VALUE: Final = re.compile(rb"[\x00\r\n]|^[ \t]|[ \t]$")
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
_NOT_METADATA: Final = frozenset(
    (
        *(b"te", b"content-type", b"content-length", b"host"),
        *(b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"),
    )
)
_TIMEOUT_NAME: Final = b"grpc-timeout"
_MAX_KNOWN: Final = 64
_SMALL_LIST_BYTES: Final = 2_048


class Metadatum(NamedTuple):
    """One pair of metadata."""

    key: str
    value: str | bytes


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The header list of a request. Shared between the calls that sent the same block."""

    path: str = ""
    """`/package.Service/Method`."""

    metadata: tuple[Metadatum, ...] = ()
    """What the caller attached, in its order."""

    timeout_s: float | None = None
    """From the arrival of the head; None is no deadline."""

    encoding: str = IDENTITY
    """How messages with the compressed flag are compressed."""

    accepts: frozenset[str] = frozenset((IDENTITY,))
    """How the caller wants messages compressed at most."""

    content_length: int | None = None
    """What the DATA frames must add up to."""

    malformed: str = ""
    """Why this is no HTTP request; the stream must be reset. Empty when it is one."""

    http_status: int = 200
    """Other than 200: this is not gRPC, and this is the HTTP answer."""

    refusal: tuple[grpc.StatusCode, str] | None = field(default=None)
    """The status to answer at once with."""


class _MalformedError(Exception):
    pass


def parse_request(fields: Fields, max_list_bytes: int) -> RequestHead:
    """Parse the header list of a request; what is wrong with it is part of the result."""
    try:
        pseudo, rest = _split(fields)
        content_length = _content_length(rest.get(b"content-length"))
    except _MalformedError as error:
        return RequestHead(malformed=str(error))
    status = 200
    if pseudo[b":method"] != b"POST":
        status = 405
    elif not _is_grpc(rest.get(b"content-type", b"")):
        status = 415
    if status != 200:
        return RequestHead(content_length=content_length, http_status=status)
    encoding = rest.get(b"grpc-encoding", b"identity").decode("latin-1")
    accepts = rest.get(b"grpc-accept-encoding", b"").decode("latin-1")
    timeout_s: float | None = None
    metadata: tuple[Metadatum, ...] = ()
    refusal: tuple[grpc.StatusCode, str] | None = None
    try:
        timeout_s = _timeout_s(rest.get(b"grpc-timeout"))
        metadata = tuple(_metadatum(*pair) for pair in fields if _is_metadata(pair[0]))
    except ValueError as error:
        refusal = (grpc.StatusCode.INTERNAL, str(error))
    if encoding not in ENCODINGS:
        refusal = (grpc.StatusCode.UNIMPLEMENTED, f"encoding {encoding[:50]!r} is not supported")
    if list_bytes(fields) > max_list_bytes:
        refusal = (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"request metadata is {list_bytes(fields)} bytes; it must be at most {max_list_bytes}",
        )
    return RequestHead(
        path=pseudo[b":path"].decode("latin-1"),
        metadata=metadata,
        timeout_s=timeout_s,
        encoding=encoding,
        accepts=frozenset(word.strip() for word in accepts.split(",")) | {IDENTITY},
        content_length=content_length,
        refusal=refusal,
    )


class RequestParser:
    """`parse_request` for one connection, whose calls often differ in little.

    A client sends another deadline with every call, and a proxy another id. So what the names that
    HTTP/2 and gRPC define say together is remembered, and every pair of metadata by itself.
    """

    def __init__(self, max_list_bytes: int) -> None:
        self._max = max_list_bytes
        self._max_bytes = min(max_list_bytes, _SMALL_LIST_BYTES)
        self._heads: dict[tuple[tuple[bytes, bytes], ...], RequestHead] = {}
        self._metadata: dict[tuple[bytes, bytes], Metadatum] = {}

    def __call__(self, fields: Fields) -> RequestHead:
        """Parse the header list of a request; see `parse_request`."""
        if list_bytes(fields) <= self._max_bytes:
            with contextlib.suppress(ValueError, _MalformedError):
                return self._parse(fields)
        return parse_request(fields, self._max)

    def _parse(self, fields: Fields) -> RequestHead:
        """Parse a list with nothing wrong in it.

        Raises:
            ValueError: Something may be.
            _MalformedError: Something may be.
        """
        own: list[tuple[bytes, bytes]] = []
        metadata: list[Metadatum] = []
        timeout: bytes | None = None
        for pair in fields:
            name = pair[0]
            if name == _TIMEOUT_NAME:
                timeout = pair[1]
            elif name not in _PSEUDO and name not in _NOT_METADATA:
                metadata.append(self._metadata.get(pair) or self._metadatum(pair))
            elif name in _PSEUDO and (metadata or timeout is not None):
                raise _MalformedError
            else:
                own.append(pair)
        key = tuple(own)
        head = self._heads.get(key) or self._head(key)
        return replace(head, metadata=tuple(metadata), timeout_s=_timeout_s(timeout))

    def _metadatum(self, pair: tuple[bytes, bytes]) -> Metadatum:
        if pair[0].startswith(b":"):
            raise _MalformedError
        _check(*pair)
        metadatum = _metadatum(*pair)
        if len(self._metadata) >= _MAX_KNOWN:
            self._metadata.clear()
        self._metadata[pair] = metadatum
        return metadatum

    def _head(self, own: tuple[tuple[bytes, bytes], ...]) -> RequestHead:
        head = parse_request(list(own), self._max)
        if head.malformed or head.refusal or head.http_status != 200:
            raise _MalformedError
        if len(self._heads) >= _MAX_KNOWN:
            self._heads.clear()
        self._heads[own] = head
        return head


def check_trailers(fields: Fields) -> str:
    """Return why `fields` cannot end a request; empty when they can."""
    try:
        for name, value in fields:
            if name.startswith(b":"):
                return "pseudo-header in trailers"
            _check(name, value)
    except _MalformedError as error:
        return str(error)
    return ""


def _split(fields: Fields) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """Check the rules of RFC 9113 section 8.2 and 8.3; the last of equal names wins."""
    pseudo: dict[bytes, bytes] = {}
    rest: dict[bytes, bytes] = {}
    for name, value in fields:
        if name.startswith(b":"):
            if rest or name in pseudo or name not in _PSEUDO:
                raise _MalformedError("misplaced, repeated or unknown pseudo-header")
            pseudo[name] = value
        else:
            _check(name, value)
            rest[name] = value
    if b":method" not in pseudo or b":scheme" not in pseudo or not pseudo.get(b":path"):
        raise _MalformedError("missing pseudo-header")
    return pseudo, rest


def _check(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name) or _FORBIDDEN_VALUE.search(value):
        raise _MalformedError("forbidden character in a header")
    if name in _CONNECTION_SPECIFIC or (name == b"te" and value != b"trailers"):
        raise _MalformedError("connection-specific header")


def _content_length(text: bytes | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise _MalformedError("content-length is not a number")
    return int(text)


def _is_grpc(content_type: bytes) -> bool:
    return content_type == b"application/grpc" or content_type.startswith(
        (b"application/grpc+", b"application/grpc;")
    )


def _timeout_s(text: bytes | None) -> float | None:
    if text is None:
        return None
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        raise ValueError("grpc-timeout is malformed")
    return int(match[1]) * _UNIT_S[match[2]]


def _is_metadata(name: bytes) -> bool:
    return not name.startswith(b":") and name not in _NOT_METADATA


def _metadatum(name: bytes, value: bytes) -> Metadatum:
    key = name.decode("latin-1")
    if not key.endswith("-bin"):
        return Metadatum(key, value.decode("latin-1"))
    try:
        # Repeated keys may be joined by commas (RFC 9113 leaves it to proxies); we keep them one.
        parts = [part.strip() for part in value.split(b",")]
        return Metadatum(key, b",".join(_unbase64(part) for part in parts))
    except binascii.Error:
        raise ValueError(f"metadata {key[:50]} is not base64") from None


def _unbase64(text: bytes) -> bytes:
    return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
