"""The files of a ZIP or TAR archive, read once in their order, with suspicion.

Nothing is ever written where an archive says. What no honest program packs (names that lead out of
the archive, links, devices, two files of one name, more bytes than real data unpack to) is refused
by the name of the file.
"""

import gzip
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from servery_trainer.data_errors import DatasetInvalidError, Problem, shown

MAX_FILES: Final = 200_000
MAX_DECODED_BYTES: Final = 4 << 30
MAX_RATIO: Final = 200
"""Decoded bytes per stored byte, beyond `RATIO_FREE_BYTES`: real data does not shrink so much."""

RATIO_FREE_BYTES: Final = 64 << 20

_MAX_DIRECTORY_BYTES: Final = 32 << 20
_MAX_HEADER_BYTES: Final = 1 << 20
_MAX_NAME: Final = 1000
_UNUSABLE: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_DRIVE: Final = re.compile(r"[A-Za-z]:")
_END: Final = struct.Struct("<4s4H2LH")
_LOCATOR_BYTES: Final = 20
_GZIP: Final = b"\x1f\x8b"
_TAR: Final = (b"ustar\0", b"ustar ")
_TAKEN: Final = (b"PK\x03\x04", b"PK\x05\x06", _GZIP)
_ARCHIVE: Final = re.compile(
    rb"PK\x03\x04|\x1f\x8b|BZh[1-9]1AY&SY|\xfd7zXZ\0|7z\xbc\xaf\x27\x1c|Rar!\x1a\x07|\x28\xb5\x2f\xfd"
)
"""How archives and compressed files of all kinds begin."""

_UNREADABLE: Final = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,
    NotImplementedError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file of an archive, open while it is the latest that was yielded."""

    parts: tuple[str, ...]
    """Its folders and its name."""

    stream: IO[bytes]
    """Its bytes, from the first."""

    @property
    def name(self) -> str:
        """Its path in the archive."""
        return "/".join(self.parts)

    def read(self, most: int) -> bytes:
        """Return all of it.

        Raises:
            DatasetInvalidError: It has more than `most` bytes, is damaged, or is itself an archive.
        """
        with reading(self.name):
            content = self.stream.read(most + 1)
        if len(content) > most:
            raise DatasetInvalidError(
                Problem.TOO_LARGE,
                f"the file {shown(self.name)!r} has more than {most >> 20} MiB; that is the limit",
                file=self.name,
            )
        if _ARCHIVE.match(content) or content[257:263] in _TAR:
            raise DatasetInvalidError(
                Problem.NESTED_ARCHIVE,
                f"the file {shown(self.name)!r} is itself an archive; unpack it, then pack its"
                " files with the others",
                file=self.name,
            )
        return content


def is_archive(start: bytes) -> bool:
    """Tell whether a file that begins like this may be a ZIP or TAR archive; give 512 bytes."""
    return start.startswith(_TAKEN) or start[257:263] in _TAR


def read_members(path: Path) -> Iterator[Member]:
    """Yield the regular files of an archive; hidden ones and folders are passed over.

    Raises:
        DatasetInvalidError: It is no such archive, is damaged or hostile, or breaks a limit.
    """
    seen: set[tuple[str, ...]] = set()
    count = 0
    with reading(None), path.open("rb") as raw:
        zipped = raw.read(2) == b"PK"
        raw.seek(0)
        for name, stream in _zip_members(path) if zipped else _tar_members(raw, path):
            parts = _parse_name(name)
            count += 1
            if count > MAX_FILES:
                raise too_many(MAX_FILES)
            if stream is None:
                continue
            if parts in seen:
                raise DatasetInvalidError(
                    Problem.DUPLICATE_FILE,
                    f"the archive holds two files named {shown(name)!r}; pack it again",
                    file=name,
                )
            seen.add(parts)
            if not any(part.startswith(".") or part == "__MACOSX" for part in parts):
                yield Member(parts, stream)


def check_directory(path: Path, most: int, what: str) -> None:
    """Look at the end record of a ZIP alone: `ZipFile` would read any directory into memory.

    Raises:
        DatasetInvalidError: There is none, or it names more than `most` files; `what` they are.
    """
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _LOCATOR_BYTES - _END.size, 0))
        tail = file.read()
    locator, record = tail[: -_END.size], tail[-_END.size :]
    if len(record) < _END.size:
        raise malformed(None)
    signature, _, _, _, count, directory_bytes, _, comment_bytes = _END.unpack(record)
    if signature != b"PK\x05\x06" or comment_bytes:
        raise malformed(None)
    zip64 = locator.startswith(b"PK\x06\x07")
    if zip64 or count > most or directory_bytes > _MAX_DIRECTORY_BYTES:
        raise too_many(most, what)


def allowed_bytes(path: Path) -> int:
    """Return how many bytes an archive may unpack to."""
    return min(MAX_DECODED_BYTES, max(RATIO_FREE_BYTES, MAX_RATIO * path.stat().st_size))


def unpacks_to_too_much(allowed: int) -> DatasetInvalidError:
    """Say that an archive is a bomb, or too large to work with."""
    return DatasetInvalidError(
        Problem.TOO_LARGE,
        f"the archive unpacks to more than {allowed} bytes; for a file of its size that is the"
        " limit",
    )


def too_many(most: int, what: str = "files") -> DatasetInvalidError:
    """Say that an archive holds more than it may."""
    return DatasetInvalidError(
        Problem.TOO_LARGE,
        f"the archive holds more than {most} {what} or {MAX_DECODED_BYTES >> 30} GiB; a ZIP of more"
        " than 65535 files can be packed as TAR instead",
    )


def malformed(name: str | None) -> DatasetInvalidError:
    """Say that an archive, or one file of it, cannot be read."""
    if name is None:
        return DatasetInvalidError(
            Problem.MALFORMED, "the file is not an archive that can be read; pack it again"
        )
    return DatasetInvalidError(
        Problem.MALFORMED, f"the file {shown(name)!r} of the archive is damaged", file=name
    )


@contextmanager
def reading(name: str | None) -> Iterator[None]:
    """Turn whatever a damaged archive makes the libraries raise into one error."""
    try:
        yield
    except _UNREADABLE:
        raise malformed(name) from None


def _parse_name(name: str) -> tuple[str, ...]:
    if _UNUSABLE.search(name) or len(name) > _MAX_NAME:
        raise DatasetInvalidError(
            Problem.MALFORMED,
            f"a name in the archive is not UTF-8 text of at most {_MAX_NAME} characters without"
            " control characters",
        )
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or "\\" in name or _DRIVE.match(name) or ".." in parts:
        raise DatasetInvalidError(
            Problem.PATH_ESCAPE,
            f"the name {shown(name)!r} leads out of the archive; pack the folder again from where"
            " it lies",
            file=name,
        )
    return parts


def _refuse_kind(name: str) -> DatasetInvalidError:
    return DatasetInvalidError(
        Problem.LINK,
        f"{shown(name)!r} is a link or no regular file; pack what it stands for",
        file=name,
    )


def _zip_members(path: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    check_directory(path, MAX_FILES, "files")
    allowed = allowed_bytes(path)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > allowed:
            raise unpacks_to_too_much(allowed)
        for member in members:
            name = member.orig_filename
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refuse_kind(name)
            if member.is_dir():
                yield name, None
                continue
            with archive.open(member) as stream:
                yield name, stream


def _tar_members(raw: IO[bytes], path: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    plain: Any = gzip.GzipFile(fileobj=raw) if raw.read(2) == _GZIP else raw
    raw.seek(0)
    forward = _Forward(plain, allowed_bytes(path))
    with tarfile.open(fileobj=forward, mode="r:") as archive:  # type: ignore[call-overload]
        while member := archive.next():
            archive.members.clear()  # it would keep them all
            if member.isdir():
                yield member.name, None
                continue
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
                raise _refuse_kind(member.name)
            stream = archive.extractfile(member)
            with forward.reading_content():
                yield member.name, stream


class _Forward:
    """Bytes that are read in one direction, up to a limit, and headers only in small pieces."""

    def __init__(self, source: IO[bytes], allowed: int) -> None:
        self._source = source
        self._allowed = allowed
        self._most = _MAX_HEADER_BYTES

    @contextmanager
    def reading_content(self) -> Iterator[None]:
        """Inside, reads may be of any size."""
        self._most = self._allowed
        try:
            yield
        finally:
            self._most = _MAX_HEADER_BYTES

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        if not 0 <= size <= self._most:
            raise malformed(None)
        self._check(self._source.tell() + size)
        return self._source.read(size)

    def seek(self, position: int) -> int:
        """Go on at `position`, which a member of negative size would put behind."""
        if position < self._source.tell() - 1:
            raise malformed(None)
        self._check(position)
        return self._source.seek(position)

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._source.tell()

    def _check(self, position: int) -> None:
        if position > self._allowed + 2 * tarfile.RECORDSIZE:
            raise unpacks_to_too_much(self._allowed)
