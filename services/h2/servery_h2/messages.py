"""From the bytes of DATA frames to messages (the length-prefixed framing of gRPC).

A compressed message stays compressed until it is wanted: else a window of small ones could hold
any amount of memory.
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

from typing import Final

import grpc

from servery_h2.compression import decompress, too_large
from servery_h2.faults import StatusError

PREFIX_BYTES: Final = 5
_RETAIN_VIEW_BYTES: Final = 16_384

Packed = tuple[bool, bytes]
"""A message as it came: whether it is compressed, and its bytes."""


class MessageReader:
    """Assembles the messages of one call.

    Args:
        encoding: How messages with the compressed flag are compressed.
        max_bytes: Largest message, both on the wire and decompressed.
    """

    __slots__ = ("_encoding", "_max", "_need", "_parts", "_prefix", "have")

    def __init__(self, encoding: str, max_bytes: int) -> None:
        self._encoding = encoding
        self._max = max_bytes
        self._prefix = b""  # Of the message being read; complete or not.
        self._parts: list[bytes | memoryview] = []
        self._need = 0  # Bytes of it still to come, once the prefix is complete.
        self.have = 0
        """Bytes held of the message being read."""

    @property
    def inside(self) -> bool:
        """Whether a message has begun and is not complete."""
        return bool(self._prefix)

    def feed(self, data: memoryview) -> list[Packed]:
        """Take bytes in order; return the messages they complete.

        Raises:
            StatusError: A message is too large or its prefix malformed.
        """
        done: list[Packed] = []
        at, end = 0, len(data)
        while at < end:
            if len(self._prefix) < PREFIX_BYTES:
                take = PREFIX_BYTES - len(self._prefix)
                self._prefix += bytes(data[at : at + take])
                at += take
                if len(self._prefix) < PREFIX_BYTES:
                    break
                self._begin()
            else:
                part = data[at : at + self._need]
                at += len(part)
                self._need -= len(part)
                self.have += len(part)
                # A view keeps the whole chunk it was received in: only worth it when it is large.
                self._parts.append(part if len(part) >= _RETAIN_VIEW_BYTES else bytes(part))
            if not self._need:
                done.append(self._end())
        return done

    def _begin(self) -> None:
        self._need = int.from_bytes(self._prefix[1:])
        if self._prefix[0] > 1:
            raise StatusError(grpc.StatusCode.INTERNAL, "a message has an unknown flag")
        if self._need > self._max:
            raise too_large(str(self._need), self._max)

    def plain(self, packed: Packed) -> bytes:
        """Return the message in `packed`, decompressed.

        Raises:
            StatusError: It is not what its encoding says, or too large.
        """
        compressed, message = packed
        return decompress(message, self._encoding, self._max) if compressed else message

    def _end(self) -> Packed:
        packed = (self._prefix[0] == 1, b"".join(self._parts))
        self._prefix, self._parts, self.have = b"", [], 0
        return packed
