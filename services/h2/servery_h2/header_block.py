"""Header blocks in (HPACK, with a memory of whole blocks) and out (literals without a table).

A client that repeats a call sends the same few bytes again: indexes into a dynamic table that both
sides keep. What they mean changes only when the table does. So a decoded block is remembered as
long as decoding touched no table, and all is forgotten as soon as a block touches it.

Tables and Huffman coding are those of the hpack library. The walk over a block is our own: a client
that sends another deadline with every call changes the table every time, and the library's decoder
takes several times as long. Both are held to agree on any bytes (tests/h2/test_header_block.py).
"""

from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

from hpack.exceptions import HPACKError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from servery_h2.faults import H2ConnectionError, calm
from servery_h2.frames import ErrorCode

Fields = list[tuple[bytes, bytes]]
T = TypeVar("T")

_MAX_CACHED_BLOCKS: Final = 64
_MAX_CACHED_BLOCK_BYTES: Final = 256
_MAX_TEXTS: Final = 64
_MAX_TEXT_BYTES: Final = 128
_MAX_INTEGER_BYTES: Final = 5
_FIELD_OVERHEAD_BYTES: Final = 32
_LITERAL: Final = b"\x00"  # Literal field without indexing, new name (RFC 7541 section 6.2.2).


class _NotHpackError(Exception):
    pass


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
        self._max = max_list_bytes
        self._table = _WatchedTable()
        self._parse = parse
        self._texts: dict[bytes, bytes] = {}  # Some encoders spell a path out in every block.
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
            return self._decode(block)
        except (HPACKError, _NotHpackError) as error:
            raise H2ConnectionError(ErrorCode.COMPRESSION_ERROR, str(error)[:100]) from None
        except IndexError:
            raise H2ConnectionError(ErrorCode.COMPRESSION_ERROR, "truncated") from None
        finally:
            if self._table.touched:
                self.cached.clear()

    def _decode(self, block: bytes) -> Fields:
        """Walk over the representations of RFC 7541 section 6."""
        table = self._table
        fields: Fields = []
        size, at, end = 0, 0, len(block)
        while at < end:
            first = block[at]
            if first >= 0x80:  # Indexed field.
                index, at = _integer(block, at, 0x7F)
                field = table.get_by_index(index)
            elif first >= 0x40:  # Literal that enters the table.
                field, at = self._literal(block, at, 0x3F)
                table.add(*field)
            elif first >= 0x20:  # Size of the table.
                if fields:
                    raise _NotHpackError("a table size after a field")
                new_size, at = _integer(block, at, 0x1F)
                if new_size > HeaderTable.DEFAULT_SIZE:
                    raise _NotHpackError("a table size above the one allowed")
                table.maxsize = new_size
                continue
            else:  # Literal that does not.
                field, at = self._literal(block, at, 0x0F)
            size += len(field[0]) + len(field[1]) + _FIELD_OVERHEAD_BYTES
            if size > self._max:
                raise calm("header list too large")
            fields.append(field)
        return fields

    def _literal(self, block: bytes, at: int, mask: int) -> tuple[tuple[bytes, bytes], int]:
        index, at = _integer(block, at, mask)
        if index:
            name = self._table.get_by_index(index)[0]
        else:
            name, at = self._string(block, at)
        value, at = self._string(block, at)
        return (name, value), at

    def _string(self, block: bytes, at: int) -> tuple[bytes, int]:
        huffman = block[at] & 0x80
        length, at = _integer(block, at, 0x7F)
        end = at + length
        if end > len(block):
            raise _NotHpackError("a string is longer than its block")
        text = block[at:end]
        return (self._decoded(text) if huffman else text), end

    def _decoded(self, text: bytes) -> bytes:
        known = self._texts.get(text)
        if known is None:
            known = bytes(decode_huffman(text))
            if len(text) <= _MAX_TEXT_BYTES:
                if len(self._texts) >= _MAX_TEXTS:
                    self._texts.clear()
                self._texts[text] = known
        return known


def encode_fields(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encode `fields` so that any decoder in any state reads them."""
    return b"".join(
        _LITERAL + _length(name) + name + _length(value) + value for name, value in fields
    )


def list_bytes(fields: Iterable[tuple[bytes, bytes]]) -> int:
    """The size of a header list as SETTINGS_MAX_HEADER_LIST_SIZE counts it."""
    return sum(len(name) + len(value) + _FIELD_OVERHEAD_BYTES for name, value in fields)


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """Decode an integer whose prefix is `mask` (RFC 7541 section 5.1); return where it ends."""
    number = block[at] & mask
    at += 1
    if number < mask:
        return number, at
    for shift in range(0, 7 * _MAX_INTEGER_BYTES, 7):
        byte = block[at]
        at += 1
        number += (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise _NotHpackError("an integer is too long")


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
