"""Models, versions, files and aliases as values: no storage, no wire format."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from servery.errors.v1 import error_reason_pb2 as reasons
from servery_rpc.errors import FieldInvalidError, ServeryError
from servery_rpc.names import AliasName, ModelName, VersionName

_PATH: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MAX_FILES: Final = 32
_MAX_METRICS: Final = 32
_MAX_METRIC_NAME: Final = 100
_MAX_SIZE_BYTES: Final = 2**62


class BundleFileNotFoundError(ServeryError):
    """A version holds no file of this path."""

    reason = reasons.ERROR_REASON_FILE_NOT_FOUND

    def __init__(self, name: VersionName, path: str) -> None:
        shown = path[:100]
        super().__init__(f"{name} has no file {shown!r}", name=str(name), path=shown)


@dataclass(frozen=True, slots=True, order=True)
class File:
    """One file of a bundle."""

    path: str
    """A single component: never a way out of a directory."""

    size_bytes: int

    sha256: str
    """64 lowercase hex digits."""

    @classmethod
    def parse(cls, path: str, size_bytes: int, sha256: str, field: str) -> "File":
        """Read what a caller declared in the request field `field`.

        Raises:
            FieldInvalidError: A part is malformed.
        """
        if not _PATH.fullmatch(path):
            raise FieldInvalidError(f"{field}.path", path, f"match {_PATH.pattern}")
        if not 0 <= size_bytes <= _MAX_SIZE_BYTES:
            raise FieldInvalidError(f"{field}.size_bytes", size_bytes, "be at least 0")
        if not _SHA256.fullmatch(sha256):
            raise FieldInvalidError(f"{field}.sha256", sha256, f"match {_SHA256.pattern}")
        return cls(path, size_bytes, sha256)


def check_files(files: Sequence[File], field: str) -> None:
    """Refuse a set of files that cannot be one bundle.

    Raises:
        FieldInvalidError: There are too many, or two have one path.
    """
    if len(files) > _MAX_FILES:
        raise FieldInvalidError(field, f"{len(files)} files", f"hold at most {_MAX_FILES}")
    seen: set[str] = set()
    for index, file in enumerate(files):
        if file.path in seen:
            raise FieldInvalidError(f"{field}[{index}].path", file.path, "be named once only")
        seen.add(file.path)


def check_metrics(metrics: Mapping[str, float], field: str) -> None:
    """Refuse headline figures that are too many or not figures.

    Raises:
        FieldInvalidError: The rule that is broken.
    """
    if len(metrics) > _MAX_METRICS:
        raise FieldInvalidError(field, f"{len(metrics)} entries", f"hold at most {_MAX_METRICS}")
    for name, value in metrics.items():
        if not 0 < len(name) <= _MAX_METRIC_NAME:
            raise FieldInvalidError(
                field, name, f"have names of 1 to {_MAX_METRIC_NAME} characters"
            )
        if not math.isfinite(value):
            raise FieldInvalidError(f"{field}[{name}]", value, "be a finite number")


def bundle_digest(files: Sequence[File]) -> str:
    """Return the digest of a bundle: equal for equal files, whatever their order."""
    lines = sorted(f"{file.sha256}  {file.path}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One immutable bundle of files."""

    name: VersionName
    files: tuple[File, ...]
    """By path."""

    metrics: Mapping[str, float]
    digest: str
    create_time: datetime

    def file(self, path: str) -> File:
        """Return the file at `path`.

        Raises:
            BundleFileNotFoundError: There is none.
        """
        for file in self.files:
            if file.path == path:
                return file
        raise BundleFileNotFoundError(self.name, path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A movable name of a version."""

    name: AliasName
    number: int
    """Of the version it points at."""

    etag: str
    """Another one after every move."""

    update_time: datetime

    @property
    def version(self) -> VersionName:
        """The version it points at."""
        return VersionName(self.name.model, self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A named line of versions."""

    name: ModelName
    create_time: datetime
    latest_version: int
    aliases: tuple[Alias, ...]
    """By name."""
