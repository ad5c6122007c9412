"""Header blocks in (HPACK, with a cache of whole blocks) and out (literals without a table).

A client that repeats a call sends the same few bytes again: indexes into a dynamic table that both
sides keep. What they mean changes only when the table does. So a decoded block is remembered as
long as decoding touched no table, and all is forgotten as soon as a block touches it.
"""

from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

from hpack import Decoder, OversizedHeaderListError
from hpack.exceptions import HPACKError
from hpack.table import HeaderTable

from servery_h2.faults import H2ConnectionError, calm
from servery_h2.frames import ErrorCode

Fields = list[tuple[bytes, bytes]]
T = TypeVar("T")

_MAX_CACHED_BLOCKS: Final = 64
_MAX_CACHED_BLOCK_BYTES: Final = 256
_LITERAL: Final = b"\x00"  # Literal field without indexing, new name (RFC 7541 section 6.2.2).


class _WatchedTable(HeaderTable):
    """A dynamic table that knows whether it was touched."""

    touched = False

    def add(self, name: bytes, value: bytes) -> None:
        self.touched = True
        super().add(name, value)

    @property
    def maxsize(self) -> int:
        return self._maxsize

    @maxsize.setter
    def maxsize(self, newmax: int) -> None:
        self.touched = True
        HeaderTable.maxsize.fset(self, newmax)  # type: ignore[attr-defined]


class HeaderReader(Generic[T]):
    """Decodes the header blocks of one connection, in order, into what `parse` makes of them.

    Args:
        max_list_bytes: A longer list closes the connection: the rest of the block is not decoded,
            and so the table is lost.
        parse: A pure function of the fields.
    """

    def __init__(self, max_list_bytes: int, parse: Callable[[Fields], T]) -> None:
        self._decoder = Decoder(max_list_bytes)
        self._table = self._decoder.header_table = _WatchedTable()
        self._parse = parse
        self.cached: dict[bytes, T] = {}
        """What every remembered block means now."""

    def read(self, block: bytes) -> T:
        """Decode and parse `block`.

        Raises:
            H2ConnectionError: It is not HPACK, or too much of it.
        """
        known = self.cached.get(block)
        if known is not None:
            return known
        parsed = self._parse(self.fields(block))
        if not self._table.touched and len(block) <= _MAX_CACHED_BLOCK_BYTES:
            if len(self.cached) >= _MAX_CACHED_BLOCKS:
                self.cached.clear()
            self.cached[block] = parsed
        return parsed

    def fields(self, block: bytes) -> Fields:
        """Decode `block` without parsing it, as trailers are.

        Raises:
            H2ConnectionError: It is not HPACK, or too much of it.
        """
        self._table.touched = False
        try:
            fields: Fields = list(self._decoder.decode(block, raw=True))
        except OversizedHeaderListError:
            raise calm("header list too large") from None
        except HPACKError as error:
            raise H2ConnectionError(ErrorCode.COMPRESSION_ERROR, str(error)[:100]) from None
        except (IndexError, ValueError, UnicodeDecodeError):  # Truncated, as hpack meets it.
            raise H2ConnectionError(ErrorCode.COMPRESSION_ERROR, "not a header block") from None
        finally:
            if self._table.touched:
                self.cached.clear()
        return fields


def encode_fields(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encode `fields` so that any decoder in any state reads them."""
    return b"".join(
        _LITERAL + _length(name) + name + _length(value) + value for name, value in fields
    )


def list_bytes(fields: Iterable[tuple[bytes, bytes]]) -> int:
    """The size of a header list as SETTINGS_MAX_HEADER_LIST_SIZE counts it."""
    return sum(len(name) + len(value) + 32 for name, value in fields)


def _length(text: bytes) -> bytes:
    """Encode a length with a 7-bit prefix, no Huffman (RFC 7541 section 5.1)."""
    number = len(text)
    if number < 127:
        return bytes((number,))
    number -= 127
    encoded = bytearray((127,))
    while number >= 128:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
