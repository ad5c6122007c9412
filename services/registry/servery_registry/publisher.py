"""Publishing a version: receive, verify, open in the sandbox, keep the bytes, commit."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from servery_registry.artifacts import Blobs, Staging
from servery_registry.sandbox import Sandbox
from servery_registry.store import Store
from servery_registry.threads import run_to_end
from servery_registry.upload import FileWriter, Upload
from servery_registry.version import Version


class Publisher:
    """Turns uploads into versions.

    The order makes it safe against a crash at any step: every byte is durable under its final name
    before the one transaction that makes the version visible.
    """

    def __init__(self, store: Store, blobs: Blobs, staging: Staging, sandbox: Sandbox) -> None:
        self._store = store
        self._blobs = blobs
        self._staging = staging
        self._sandbox = sandbox

    async def publish(self, upload: Upload, chunks: AsyncIterator[bytes]) -> Version:
        """Store what `upload` announces and `chunks` carry.

        A repeated request is answered without reading `chunks`.

        Raises:
            ServeryError: Any that RegisterVersion promises; then nothing was stored.
        """
        if upload.request:
            before = await asyncio.to_thread(
                self._store.answered, upload.new.model.tenant, upload.request
            )
            if before:
                return before
        async with self._staging.directory() as directory:
            await self._receive(upload, chunks, directory)
            await self._sandbox.admit(directory)
            return await run_to_end(self._commit, upload, directory)

    async def _receive(self, upload: Upload, chunks: AsyncIterator[bytes], directory: Path) -> None:
        with FileWriter(upload.new.files, directory) as writer:
            async for chunk in chunks:
                await run_to_end(writer.write, chunk)
            writer.finish()

    def _commit(self, upload: Upload, directory: Path) -> Version:
        self._blobs.publish({file.sha256: directory / file.path for file in upload.new.files})
        return self._store.add_version(upload.new, upload.request)
