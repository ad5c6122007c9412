"""The protobuf wire format of `repeated bytes` fields, read and written without copying them.

Every read of a protobuf `bytes` field copies it, which for tensors is most of the work. So the
large field is cut out of a message as views, and the rest of it goes to protobuf.
"""

from collections.abc import Sequence
from typing import Final

_LENGTH_DELIMITED: Final = 2
_FIXED_BYTES: Final = {1: 8, 5: 4}
_MAX_FIELDS: Final = 1 << 16
_MAX_VARINT_BYTES: Final = 10

Buffer = bytes | memoryview


class MalformedMessageError(ValueError):
    """Bytes are not a protobuf message."""


def cut_out(message: bytes, field: int) -> tuple[bytes, list[memoryview]]:
    """Take every occurrence of a `bytes` field out of a message.

    Args:
        message: A serialized message.
        field: Number of the field, at the top level of the message.

    Returns:
        The message without that field, still serialized, and the values of the field in order,
        as views of `message`.

    Raises:
        MalformedMessageError: The message breaks off, has a group, or has over 65536 fields.
    """
    view = memoryview(message)
    wanted = field << 3 | _LENGTH_DELIMITED
    values: list[memoryview] = []
    rest: list[memoryview] = []
    at = kept = fields = 0
    end = len(message)
    while at < end:
        start = at
        fields += 1
        if fields > _MAX_FIELDS:
            raise MalformedMessageError("too many fields")
        tag, at = _varint(message, at)
        at, length = _skip(message, tag, at)
        if at > end:
            raise MalformedMessageError("the message breaks off")
        if tag == wanted:
            values.append(view[at - length : at])
            if kept < start:
                rest.append(view[kept:start])
            kept = at
    if not values:
        return message, values
    rest.append(view[kept:])
    return b"".join(rest), values


def part(
    message: bytes, once: int, repeated: int
) -> tuple[bytes, bytes, list[tuple[int, int]]] | None:
    """Take a text and a `repeated bytes` field out of a message whose fields all have lengths.

    Args:
        message: A serialized message.
        once: Number of the text field, below 16.
        repeated: Number of the other field, below 16; it must come last.

    Returns:
        The message without these fields; the text, empty if it is not there; and where the values
        of the other one begin and end. None if the message is anything less plain than that: then
        it may still be one.
    """
    text_tag, bytes_tag = once << 3 | _LENGTH_DELIMITED, repeated << 3 | _LENGTH_DELIMITED
    places: list[tuple[int, int]] = []
    text: tuple[int, int, int] | None = None
    at = rest = 0
    end = len(message)
    try:
        while at < end:
            tag, length, start = message[at], message[at + 1], at + 2
            if length > 0x7F:
                length, start = _varint(message, at + 1)
            stop = start + length
            if tag == bytes_tag:
                places.append((start, stop))
            elif places or tag & 0x87 != _LENGTH_DELIMITED:
                return None
            elif tag == text_tag:
                if text is not None:
                    return None
                text, rest = (at, start, stop), stop
            else:
                rest = stop
            at = stop
    except (IndexError, MalformedMessageError):
        return None
    if at != end:
        return None
    if text is None:
        return message[:rest], b"", places
    at, start, stop = text
    return message[:at] + message[stop:rest], message[start:stop], places


def text_of(message: bytes, field: int) -> str:
    """Return a text field at the top level of `message`; empty if it is not there or not legible.

    For messages that are refused: whoever sent them shall know which one is meant.
    """
    try:
        _, values = cut_out(message, field)
        return bytes(values[-1]).decode() if values else ""
    except (MalformedMessageError, UnicodeDecodeError):
        return ""


def append(message: bytes, field: int, values: Sequence[Buffer]) -> bytes:
    """Serialize `message` with `values` added to its `repeated bytes` field number `field`."""
    parts: list[Buffer] = [message]
    for value in values:
        parts += (prefix(field, len(value)), value)
    return b"".join(parts)


def prefix(field: int, length: int) -> bytes:
    """Return what stands before a value of `length` bytes of field number `field`."""
    return encode_varint(field << 3 | _LENGTH_DELIMITED) + encode_varint(length)


def encode_varint(value: int) -> bytes:
    """Encode an unsigned integer as protobuf does."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _skip(message: bytes, tag: int, at: int) -> tuple[int, int]:
    """Step over the value that follows `tag`: where it ends, and its length if it has one."""
    kind = tag & 7
    if kind == _LENGTH_DELIMITED:
        length, at = _varint(message, at)
        return at + length, length
    if kind == 0:
        return _varint(message, at)[1], 0
    if kind in _FIXED_BYTES:
        return at + _FIXED_BYTES[kind], 0
    raise MalformedMessageError(f"wire type {kind}")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        if at >= len(message):
            raise MalformedMessageError("the message breaks off")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedMessageError("a varint does not end")
