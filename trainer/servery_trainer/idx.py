"""Pairs of IDX files (images and classes), the format of MNIST, in one ZIP or TAR archive.

An IDX file is two zero bytes, a byte for the type of its values, a byte for the number of its axes,
their lengths as 32-bit integers and then the values, all big-endian.
"""

import gzip
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from servery_trainer.archives import ArrayHeader
from servery_trainer.data_errors import DatasetInvalidError, Problem, shown
from servery_trainer.members import (
    Member,
    allowed_bytes,
    malformed,
    read_members,
    reading,
    unpacks_to_too_much,
)

IMAGES: Final = "images"
LABELS: Final = "labels"

_DTYPES: Final = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_MAX_AXES: Final = 8
_CHUNK_BYTES: Final = 1 << 20
_GZIP: Final = b"\x1f\x8b"


class IdxPair:
    """The arrays `images` and `labels` of an archive. Made by `open_pair`."""

    def __init__(self, path: Path, headers: Mapping[str, ArrayHeader]) -> None:
        self._path = path
        self.headers = headers
        """By name; both have the same number of rows, at least 1."""

    def chunks(self, name: str) -> Iterator[NDArray[Any]]:
        """Yield all values of an array, flat and in the order they are stored."""
        for member in read_members(self._path):
            with _unpacked(member) as stream:
                shape, dtype = _read_header(member.name, stream)
                if _array_name(shape) != name:
                    continue
                with reading(member.name):
                    while part := stream.read(_CHUNK_BYTES):  # a multiple of every item size
                        yield np.frombuffer(part, dtype)

    def load(self, name: str) -> NDArray[Any]:
        """Return an array, in native byte order."""
        header = self.headers[name]
        values = np.concatenate(list(self.chunks(name)))
        return values.astype(header.dtype.newbyteorder("="), copy=False).reshape(header.shape)


@contextmanager
def open_pair(path: Path) -> Iterator[IdxPair]:
    """Open an archive of two IDX files, after reading all of it.

    Raises:
        DatasetInvalidError: It holds anything but one IDX file with one axis and one with more, of
            as many rows, or a file that is longer or shorter than it says.
    """
    headers: dict[str, ArrayHeader] = {}
    left = allowed = allowed_bytes(path)
    for member in read_members(path):
        with _unpacked(member) as stream:
            shape, dtype = _read_header(member.name, stream)
            size = math.prod(shape) * dtype.itemsize
            left -= size
            if left < 0:
                raise unpacks_to_too_much(allowed)
            _check_length(member.name, stream, size)
        name = _array_name(shape)
        if name in headers:
            raise _no_pair(f"{shown(member.name)!r} is one too many")
        headers[name] = ArrayHeader(name=name, shape=shape, dtype=dtype, fortran_order=False)
    if missing := {IMAGES, LABELS} - headers.keys():
        raise _no_pair(f"there are no {missing.pop()}")
    images, labels = headers[IMAGES], headers[LABELS]
    if images.shape[0] != labels.shape[0]:
        raise DatasetInvalidError(
            Problem.WRONG_SHAPE,
            f"there are {images.shape[0]} images and {labels.shape[0]} labels; pack files that"
            " belong together",
            array=LABELS,
        )
    yield IdxPair(path, {IMAGES: images, LABELS: labels})


def _array_name(shape: tuple[int, ...]) -> str:
    return LABELS if len(shape) == 1 else IMAGES


def _no_pair(what: str) -> DatasetInvalidError:
    return DatasetInvalidError(
        Problem.MISSING_ARRAY,
        f"an archive of IDX files holds one with images and one with their labels; {what}; pack"
        " each pair as a dataset of its own, which a job divides by itself",
    )


@contextmanager
def _unpacked(member: Member) -> Iterator[IO[bytes]]:
    with reading(member.name):
        start = member.stream.peek(2)[:2]  # type: ignore[attr-defined]
    if start != _GZIP:
        yield member.stream
        return
    stream: Any = gzip.GzipFile(fileobj=member.stream)
    with stream:
        yield stream


def _read_header(name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with reading(name):
        start = stream.read(4)
        if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _DTYPES:
            raise _no_idx(name)
        axes = start[3]
        if not 1 <= axes <= _MAX_AXES:
            raise _no_idx(name)
        lengths = stream.read(4 * axes)
        if len(lengths) < 4 * axes:
            raise malformed(name)
    shape = struct.unpack(f">{axes}I", lengths)
    if 0 in shape:
        raise DatasetInvalidError(
            Problem.EMPTY, f"the file {shown(name)!r} says that it holds nothing", file=name
        )
    return shape, np.dtype(_DTYPES[start[2]])


def _check_length(name: str, stream: IO[bytes], size: int) -> None:
    with reading(name):
        while size > 0 and (part := stream.read(min(size, _CHUNK_BYTES))):
            size -= len(part)
        if size or stream.read(1):
            raise malformed(name)


def _no_idx(name: str) -> DatasetInvalidError:
    return DatasetInvalidError(
        Problem.MALFORMED,
        f"the file {shown(name)!r} is not in IDX format; pack two IDX files and nothing else",
        file=name,
    )
