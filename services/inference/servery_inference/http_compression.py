"""Bodies of HTTP compressed by gzip or deflate, bounded when they are blown up."""

import gzip
import zlib
from typing import Final

from servery_rpc.errors import FieldInvalidError, UnsupportedError, UploadTooLargeError

_EITHER: Final = zlib.MAX_WBITS | 32  # The header tells gzip from zlib.
_LEVEL: Final = 1  # Tensors are large and hardly compressible: speed counts.


def decompress(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """Undo a Content-Encoding. Blocks.

    Raises:
        UnsupportedError: It is another one.
        FieldInvalidError: The body is not compressed like that.
        UploadTooLargeError: More than `limit_bytes` come out.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise UnsupportedError(f"the Content-Encoding {encoding[:40]!r}")
    invalid = FieldInvalidError("body", f"{len(body)} bytes", f"be compressed by {encoding}")
    machine = zlib.decompressobj(_EITHER)
    try:
        plain = machine.decompress(body, limit_bytes + 1)
    except zlib.error:
        raise invalid from None
    if machine.unused_data or (not machine.eof and len(plain) <= limit_bytes):
        raise invalid
    if len(plain) > limit_bytes:
        raise UploadTooLargeError(limit_bytes)
    return plain


def accepted(header: str) -> str:
    """Return the first of gzip and deflate that an Accept-Encoding allows; empty for neither."""
    offers = {
        name.strip().lower(): quality.replace(" ", "")
        for name, _, quality in (offer.partition(";") for offer in header.split(","))
    }
    for encoding in ("gzip", "deflate"):
        if encoding in offers and offers[encoding] not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            return encoding
    return ""


def compress(body: bytes, encoding: str) -> bytes:
    """Compress a body for a Content-Encoding of gzip or deflate. Blocks."""
    return (
        gzip.compress(body, _LEVEL, mtime=0) if encoding == "gzip" else zlib.compress(body, _LEVEL)
    )
