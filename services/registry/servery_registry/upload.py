"""An upload: what its header announces, and the bytes that must follow."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from servery_registry.bundle import REQUIRED, BundleInvalidError
from servery_registry.store import NewVersion, RequestKey
from servery_registry.version import File, check_files, check_metrics
from servery_rpc.errors import DigestMismatchError, FieldInvalidError, UploadTooLargeError
from servery_rpc.names import ModelName

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(frozen=True, slots=True)
class Upload:
    """A version as announced, before its bytes."""

    new: NewVersion
    request: RequestKey | None

    @classmethod
    def parse(
        cls,
        model: ModelName,
        files: Sequence[File],
        metrics: Mapping[str, float],
        request_id: str,
        limit_bytes: int,
    ) -> Self:
        """Check what the header says as a whole.

        Raises:
            FieldInvalidError: The files, metrics or the request_id break a rule.
            BundleInvalidError: A required file is not announced.
            UploadTooLargeError: The sizes add up to more than `limit_bytes`.
        """
        check_files(files, "header.files")
        check_metrics(metrics, "header.metrics")
        if request_id and not _UUID.fullmatch(request_id):
            raise FieldInvalidError("header.request_id", request_id, "be a UUID or empty")
        for path in REQUIRED:
            if path not in (file.path for file in files):
                raise BundleInvalidError(path, "is required and not among the files")
        if sum(file.size_bytes for file in files) > limit_bytes:
            raise UploadTooLargeError(limit_bytes)
        new = NewVersion(model=model, files=tuple(files), metrics=dict(metrics))
        request = RequestKey(request_id.lower(), _digest(new)) if request_id else None
        return cls(new, request)


def _digest(new: NewVersion) -> str:
    asked = [
        str(new.model),
        sorted((f.path, f.size_bytes, f.sha256) for f in new.files),
        sorted(new.metrics.items()),
    ]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


class FileWriter:
    """Cuts one run of bytes into the announced files and verifies each as it ends."""

    def __init__(self, files: Sequence[File], directory: Path) -> None:
        """Build it to write into `directory`."""
        self._waiting = list(reversed(files))
        self._directory = directory
        self._open: BinaryIO | None = None
        self._file = File("", 0, "")
        self._missing_bytes = 0
        self._digest = hashlib.sha256()
        self._next()

    def write(self, chunk: bytes) -> None:
        """Write the next bytes.

        Raises:
            FieldInvalidError: They go on behind the last file.
            DigestMismatchError: A file ended and is not the announced one.
        """
        rest = memoryview(chunk)
        while rest:
            if self._open is None:
                raise FieldInvalidError(
                    "chunk", f"{len(rest)} bytes too many", "end where the announced sizes end"
                )
            part = rest[: self._missing_bytes]
            self._open.write(part)
            self._digest.update(part)
            self._missing_bytes -= len(part)
            rest = rest[len(part) :]
            if not self._missing_bytes:
                self._end()
                self._next()

    def finish(self) -> None:
        """Tell that no bytes follow.

        Raises:
            FieldInvalidError: A file is not complete.
        """
        if self._open is not None:
            missing = self._missing_bytes + sum(f.size_bytes for f in self._waiting)
            raise FieldInvalidError(
                "chunk",
                f"{missing} bytes too few, from {self._file.path} on",
                "carry as many bytes as the header announces",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._open is not None:
            self._open.close()

    def _next(self) -> None:
        """Open the next file, passing over empty ones."""
        while self._waiting:
            self._file = self._waiting.pop()
            self._open = (self._directory / self._file.path).open("xb")
            self._digest = hashlib.sha256()
            self._missing_bytes = self._file.size_bytes
            if self._missing_bytes:
                return
            self._end()

    def _end(self) -> None:
        assert self._open is not None  # noqa: S101 - a file ends only after it was opened
        self._open.close()
        self._open = None
        computed = self._digest.hexdigest()
        if computed != self._file.sha256:
            raise DigestMismatchError(self._file.path, self._file.sha256, computed)
