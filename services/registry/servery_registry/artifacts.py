"""Where the bytes of versions are: staged while they arrive, then kept under their SHA-256.

Local storage of obstore neither syncs a file nor its directory (strace shows link and unlink
only), so `LocalBlobs` publishes by itself and uses obstore for the rest.
"""

import os
import shutil
import uuid
from collections.abc import AsyncIterator, Mapping, Set
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import obstore
from obstore.store import LocalStore

from servery_registry.threads import run_to_end

CHUNK_BYTES: Final = 1024 * 1024
"""Largest piece that `Blobs.read` yields."""


class Blobs(Protocol):
    """Immutable byte strings by their SHA-256."""

    def publish(self, staged: Mapping[str, Path]) -> None:
        """Take files over, by their SHA-256, which the caller has verified.

        Durable when it returns. A blob appears under its name only whole. Publishing one that
        exists is allowed. Blocks; any thread may call.
        """

    def read(self, sha256: str, offset_bytes: int) -> AsyncIterator[bytes]:
        """Yield the bytes behind `offset_bytes`, which is less than the size of the blob."""

    def sweep(self, referenced: Set[str]) -> Set[str]:
        """Delete the blobs that are not `referenced`; return the referenced ones that are gone.

        Only while nothing is published.
        """


class LocalBlobs:
    """`Blobs` in one flat directory of this machine, on the file system of the staged files."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        sync_directory(directory.parent)
        self._directory = directory
        self._store = LocalStore(directory)

    def publish(self, staged: Mapping[str, Path]) -> None:
        """See `Blobs`."""
        for path in staged.values():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for sha256, path in staged.items():
            path.replace(self._directory / sha256)
        sync_directory(self._directory)

    async def read(self, sha256: str, offset_bytes: int) -> AsyncIterator[bytes]:
        """See `Blobs`."""
        found = await obstore.get_async(
            self._store, sha256, options={"range": {"offset": offset_bytes}}
        )
        async for piece in found.stream(min_chunk_size=CHUNK_BYTES):
            view = memoryview(piece)
            for start in range(0, len(view), CHUNK_BYTES):
                yield bytes(view[start : start + CHUNK_BYTES])

    def sweep(self, referenced: Set[str]) -> Set[str]:
        """See `Blobs`."""
        present = {meta["path"] for batch in obstore.list(self._store) for meta in batch}
        if stale := sorted(present - referenced):
            obstore.delete(self._store, stale)
        return referenced - present


class Staging:
    """Directories for uploads that are on their way."""

    def __init__(self, directory: Path) -> None:
        """Build it, and delete what uploads of an earlier life left behind."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        self._directory = directory

    @asynccontextmanager
    async def directory(self) -> AsyncIterator[Path]:
        """Lend an empty directory; it is deleted with its contents when the block is left.

        No thread may still write into it then: see `run_to_end`.
        """
        path = self._directory / uuid.uuid4().hex
        try:
            await run_to_end(path.mkdir)
            yield path
        finally:
            await run_to_end(partial(shutil.rmtree, path, ignore_errors=True))


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
