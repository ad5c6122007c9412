"""Message compression, and the only place that decompresses: never beyond a limit."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import gzip
import zlib
from collections.abc import Callable, Mapping
from typing import Final

import grpc

from servery_h2.faults import StatusError

IDENTITY: Final = "identity"
_LEVEL: Final = 6
_GZIP_WBITS: Final = 31
_ZLIB_WBITS: Final = 15

_WBITS: Final = {"gzip": _GZIP_WBITS, "deflate": _ZLIB_WBITS}
ENCODINGS: Final = (IDENTITY, *_WBITS)
"""Names understood in `grpc-encoding`."""

COMPRESSIONS: Final[Mapping[grpc.Compression, str]] = {
    grpc.Compression.NoCompression: IDENTITY,
    grpc.Compression.Deflate: "deflate",
    grpc.Compression.Gzip: "gzip",
}

_COMPRESS: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "gzip": lambda message: gzip.compress(message, _LEVEL, mtime=0),
    "deflate": lambda message: zlib.compress(message, _LEVEL),
}


def compress(message: bytes, encoding: str) -> bytes:
    """Compress `message`; `encoding` is not identity."""
    return _COMPRESS[encoding](message)


def decompress(message: bytes, encoding: str, max_bytes: int) -> bytes:
    """Decompress one message.

    Raises:
        StatusError: It is larger than `max_bytes`, or not what `encoding` says.
    """
    if encoding == IDENTITY:
        raise StatusError(
            grpc.StatusCode.INTERNAL,
            "a message is flagged compressed but no grpc-encoding was sent",
        )
    inflate = zlib.decompressobj(_WBITS[encoding])
    try:
        plain = inflate.decompress(message, max_bytes + 1)
    except zlib.error:
        raise StatusError(grpc.StatusCode.INTERNAL, f"a message is not {encoding}") from None
    if len(plain) > max_bytes:
        raise too_large(f"more than {max_bytes}", max_bytes)
    if not inflate.eof:
        raise StatusError(grpc.StatusCode.INTERNAL, f"a message is truncated {encoding}")
    return plain


def too_large(found: str, max_bytes: int) -> StatusError:
    """Return the status of a request message above the limit."""
    return StatusError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"the request message is {found} bytes; this server takes at most {max_bytes}",
    )
