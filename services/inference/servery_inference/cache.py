"""Bundles of the registry on this machine's disk, by the digest of all their files.

`bundles/{digest}/{path}` is complete and was verified once; `partial/{digest}/{path}` is on its
way. `state.json` is what a restarted process begins with. Functions block unless they say not.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from servery.registry.v1 import registry_pb2 as pb
from servery_inference.engine import LoadFailedError
from servery_rpc.errors import FieldInvalidError
from servery_rpc.names import VersionName

_PATH: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class BundleFile:
    """One file of a bundle."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class BundleSpec:
    """The files a version is made of."""

    name: VersionName
    digest: str
    files: tuple[BundleFile, ...]

    @classmethod
    def parse(cls, version: pb.Version) -> Self:
        """Read what the registry says.

        Raises:
            FieldInvalidError: A name, path or digest is malformed: it must not reach the disk.
        """
        files = tuple(BundleFile(f.path, f.size_bytes, f.sha256) for f in version.files)
        for file in files:
            _require(_PATH, file.path, "version.files.path")
            _require(_SHA256, file.sha256, "version.files.sha256")
        lines = sorted(f"{file.sha256}  {file.path}\n" for file in files)
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        if digest != version.digest:
            raise FieldInvalidError("version.digest", version.digest, f"be {digest}")
        return cls(VersionName.parse(version.name), digest, files)

    def to_proto(self) -> pb.Version:
        """Render for `parse`; what a rollout does not need is left out."""
        files = [
            pb.File(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
            for file in self.files
        ]
        return pb.Version(name=str(self.name), digest=self.digest, files=files)


class BundleCache:
    """A directory that belongs to one process.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self._bundles = root / "bundles"
        self._partial = root / "partial"
        self._trash = root / "trash"
        self._state = root / "state.json"
        for folder in (root, self._bundles, self._partial, self._trash):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def folder(self, spec: BundleSpec) -> Path:
        """Where the files of a complete bundle are."""
        return self._bundles / spec.digest

    def holds(self, spec: BundleSpec) -> bool:
        """Tell whether the bundle is here and unharmed; drop it if it is harmed."""
        folder = self.folder(spec)
        if not folder.is_dir():
            return False
        if _first_wrong(folder, spec) is None:
            return True
        shutil.rmtree(folder)
        return False

    def partial_file(self, spec: BundleSpec, file: BundleFile) -> tuple[Path, int]:
        """Return where to put a file on its way, and how many bytes of it are there already."""
        path = self._partial / spec.digest / file.path
        path.parent.mkdir(mode=0o700, exist_ok=True)
        size = path.stat().st_size if path.exists() else 0
        if size > file.size_bytes:
            path.unlink()
            size = 0
        return path, size

    def admit(self, spec: BundleSpec) -> None:
        """Make a bundle complete of which every file has arrived.

        Raises:
            LoadFailedError: A file has other bytes than declared; the files are dropped.
        """
        folder = self._partial / spec.digest
        wrong = _first_wrong(folder, spec)
        if wrong is not None:
            shutil.rmtree(folder)
            raise LoadFailedError(
                f"{wrong.path} of the bundle does not have the SHA-256 {wrong.sha256} that the"
                " registry declares"
            )
        folder.rename(self.folder(spec))

    def digests(self) -> set[str]:
        """Return the digests of all bundles that are here, wholly or partly."""
        return {
            entry.name for parent in (self._bundles, self._partial) for entry in parent.iterdir()
        }

    def discard(self, digest: str) -> None:
        """Move a bundle into the trash. Does not block for long."""
        for parent in (self._bundles, self._partial):
            with contextlib.suppress(FileNotFoundError):
                (parent / digest).rename(self._trash / f"{parent.name}-{digest}")

    def empty_trash(self) -> None:
        """Delete what was discarded."""
        for entry in self._trash.iterdir():
            shutil.rmtree(entry)

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Replace `state.json`, atomically."""
        fresh = self._state.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump(state, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._state)

    def read_state(self) -> dict[str, Any]:
        """Read `state.json`; empty if there is none or it is damaged."""
        try:
            state = json.loads(self._state.read_bytes())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}


def _first_wrong(folder: Path, spec: BundleSpec) -> BundleFile | None:
    for file in spec.files:
        try:
            with (folder / file.path).open("rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() != file.sha256:
                    return file
        except FileNotFoundError:
            return file
    return None


def _require(pattern: re.Pattern[str], text: str, field: str) -> None:
    if not pattern.fullmatch(text):
        raise FieldInvalidError(field, text, f"match {pattern.pattern}")
