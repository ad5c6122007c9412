"""NPZ files, opened with suspicion: limits before bytes, and never an object."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from servery_trainer.data_errors import DatasetInvalidError, Problem, shown
from servery_trainer.members import allowed_bytes, check_directory, unpacks_to_too_much

MAX_ARRAYS: Final = 64

_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayHeader:
    """What an array says of itself; checked against the bytes that are there."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool


class Archive:
    """The arrays of one NPZ file. Made by `open_archive`."""

    def __init__(self, file: zipfile.ZipFile, headers: Mapping[str, ArrayHeader]) -> None:
        self._file = file
        self.headers = headers
        """By name, in the order of the file. All have the same number of rows, at least 1."""

    def chunks(self, name: str) -> Iterator[NDArray[Any]]:
        """Yield all values of an array, flat and in the order they are stored.

        Raises:
            DatasetInvalidError: The bytes are damaged.
        """
        header = self.headers[name]
        length = max(_CHUNK_BYTES // header.dtype.itemsize, 1) * header.dtype.itemsize
        with _reading(name), self._file.open(f"{name}.npy") as stream:
            _read_header(stream, name)
            while part := stream.read(length):
                # a read may end inside of a value
                part += stream.read(-len(part) % header.dtype.itemsize)
                yield np.frombuffer(part, header.dtype)

    def load(self, name: str) -> NDArray[Any]:
        """Return an array, in native byte order and C order.

        Raises:
            DatasetInvalidError: The bytes are damaged.
        """
        header = self.headers[name]
        values = np.concatenate(list(self.chunks(name)))
        order: Any = "F" if header.fortran_order else "C"
        native = values.astype(header.dtype.newbyteorder("="), copy=False)
        return np.ascontiguousarray(native.reshape(header.shape, order=order))


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an NPZ file after checking what it declares.

    Raises:
        DatasetInvalidError: It is no such file, breaks a limit, or holds an array of objects, of
            another number of rows than the first, or of no rows.
    """
    check_directory(path, MAX_ARRAYS, "arrays")
    try:
        file = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise _no_archive() from None
    with file:
        members = file.infolist()
        _check_sizes(members, allowed_bytes(path))
        headers = [_header(file, member) for member in members]
        _check_rows(headers)
        yield Archive(file, {header.name: header for header in headers})


def _no_archive() -> DatasetInvalidError:
    return DatasetInvalidError(
        Problem.MALFORMED, "the file is not an NPZ archive; write it with numpy.savez"
    )


def _check_sizes(members: Sequence[zipfile.ZipInfo], allowed: int) -> None:
    if not members:
        raise DatasetInvalidError(Problem.EMPTY, "the archive holds no array")
    if sum(member.file_size for member in members) > allowed:
        raise unpacks_to_too_much(allowed)


def _header(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> ArrayHeader:
    name = member.filename.removesuffix(".npy")
    if (
        name == member.filename
        or not name.isprintable()
        or file.namelist().count(member.filename) > 1
        or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        or member.flag_bits & 1  # encrypted
    ):
        raise _damaged(shown(name))
    with _reading(name), file.open(member) as stream:
        shape, fortran_order, dtype = _read_header(stream, name)
        header_bytes = stream.tell()
    if not shape:
        raise DatasetInvalidError(
            Problem.WRONG_SHAPE, f"array {name!r} is a single value; it must have rows", array=name
        )
    values = 1
    for length in shape:
        values *= length
    if values == 0:
        raise DatasetInvalidError(
            Problem.EMPTY, f"array {name!r} has shape {shape}, so it holds nothing", array=name
        )
    if min(shape) < 0 or header_bytes + values * dtype.itemsize != member.file_size:
        raise _damaged(name)
    return ArrayHeader(name=name, shape=shape, dtype=dtype, fortran_order=fortran_order)


def _read_header(stream: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        shape, fortran_order, dtype = read[npy.read_magic(stream)](stream)
    except (ValueError, KeyError):
        raise _damaged(name) from None
    if dtype.hasobject:
        raise DatasetInvalidError(
            Problem.OBJECT_ARRAY,
            f"array {name!r} holds Python objects, as arrays of rows of different lengths do; they"
            " are never loaded: convert it to numbers or text of one shape before saving",
            array=name,
        )
    if dtype.kind not in "biufUS" or not dtype.itemsize:
        raise DatasetInvalidError(
            Problem.WRONG_DTYPE,
            f"array {name!r} is of dtype {shown(dtype)}; it must be numbers, text or booleans",
            array=name,
        )
    return shape, fortran_order, dtype


def _check_rows(headers: Sequence[ArrayHeader]) -> None:
    first = headers[0]
    for header in headers:
        if header.shape[0] != first.shape[0]:
            raise DatasetInvalidError(
                Problem.WRONG_SHAPE,
                f"array {header.name!r} has {header.shape[0]} rows and {first.name!r}"
                f" {first.shape[0]}; the first axis of every array is the row",
                array=header.name,
            )


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError):
        raise _damaged(name) from None


def _damaged(name: str) -> DatasetInvalidError:
    return DatasetInvalidError(
        Problem.MALFORMED,
        f"array {name!r} of the archive is damaged; write it again with numpy.savez",
        array=name,
    )
