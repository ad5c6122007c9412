"""Model repositories in object storage (S3, GCS, Azure), brought to a directory of this machine.

Everything blocks.
"""

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

_SEGMENT: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,254}")
_MAX_SEGMENTS: Final = 8
_MANIFEST: Final = ".manifest.json"
_PARTIAL: Final = ".partial"
_CHUNK_BYTES: Final = 4 << 20

Stamp = tuple[str, int]
"""What tells the contents of an object from others: its ETag or time, and its size."""

log = logging.getLogger(__name__)


class Mirror:
    """A directory that follows a prefix of an object store. For one thread at a time.

    Args:
        store: The prefix.
        root: A directory that belongs to the mirror alone.

    Raises:
        OSError: `root` cannot be used.
    """

    def __init__(self, store: ObjectStore, root: Path) -> None:
        self._store = store
        self._root = root
        self._partial = root / _PARTIAL
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(mode=0o700, parents=True)
        self._known = self._recall()

    @classmethod
    def open(cls, url: str, root: Path) -> Self:
        """Follow `url`, such as `s3://bucket/prefix`; credentials come from the environment.

        Raises:
            OSError: There is no such store, or `root` cannot be used.
        """
        try:
            return cls(from_url(url), root)
        except (BaseError, ValueError) as error:
            raise OSError(f"the object store of model_repository: {_words(error)}") from None

    def refresh(self) -> None:
        """Bring the directory to what the store holds now.

        Every file is replaced as a whole; one that fails to arrive leaves the old one in place.

        Raises:
            OSError: The store cannot be read, or the disk cannot be written.
        """
        try:
            wanted = dict(self._listed())
            for path, stamp in sorted(wanted.items()):
                if self._known.get(path) != stamp or not (self._root / path).exists():
                    self._bring(path, stamp[1])
                    self._known[path] = stamp
            for path in sorted(set(self._known) - set(wanted)):
                self._drop(path)
        except (BaseError, FileNotFoundError, PermissionError) as error:
            if isinstance(error, OSError) and error.errno:  # Of this machine, not of the store.
                raise
            raise OSError(f"the object store of model_repository: {_words(error)}") from None
        finally:
            self._remember()

    def _listed(self) -> Iterator[tuple[str, Stamp]]:
        for batch in obstore.list(self._store):
            for meta in batch:
                path = str(meta["path"])
                segments = path.rstrip("/").split("/")
                if len(segments) > _MAX_SEGMENTS or not all(map(_SEGMENT.fullmatch, segments)):
                    log.warning("object %r is passed over: its name is not of a model", path[:200])
                    continue
                stamp = meta["e_tag"] or meta["last_modified"].isoformat()
                yield path.rstrip("/"), (stamp, int(meta["size"]))

    def _bring(self, path: str, size_bytes: int) -> None:
        target = self._root / path
        if not size_bytes and target.name.isdecimal():  # Stands for an empty folder.
            target.mkdir(parents=True, exist_ok=True)
            return
        descriptor, name = tempfile.mkstemp(dir=self._partial)
        arriving = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for chunk in obstore.get(self._store, path).stream(min_chunk_size=_CHUNK_BYTES):
                    file.write(chunk)
            if arriving.stat().st_size != size_bytes:
                raise OSError(f"object {path!r} changed while it was read")
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            arriving.replace(target)
        finally:
            arriving.unlink(missing_ok=True)
        log.info("object %s arrived, %s bytes", path, size_bytes)

    def _drop(self, path: str) -> None:
        target = self._root / path
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        del self._known[path]
        for parent in target.parents:
            if parent == self._root or any(parent.iterdir()):
                break
            parent.rmdir()

    def _recall(self) -> dict[str, Stamp]:
        try:
            known = json.loads((self._root / _MANIFEST).read_bytes())
            return {str(path): (str(tag), int(size)) for path, (tag, size) in known.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _remember(self) -> None:
        known: Mapping[str, Stamp] = self._known
        fresh = self._partial / _MANIFEST
        fresh.write_text(json.dumps(known))
        fresh.replace(self._root / _MANIFEST)


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
