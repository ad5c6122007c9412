"""What the processes of jobs wrote for people: kept after their end, and told live before it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from servery_rpc.errors import DependencyUnavailableError
from servery_rpc.names import TrainingJobName
from servery_trainer.job_directories import JobDirectories
from servery_trainer.jobs import is_final
from servery_trainer.store import JobStore

_CHUNK_BYTES: Final = 64 * 1024
_INTERVAL_S: Final = 0.3


class JobLogs:
    """Reads the logs of jobs.

    Args:
        store: Tells whether a job has ended.
        directories: Where the logs are.
    """

    def __init__(self, store: JobStore, directories: JobDirectories) -> None:
        self._store = store
        self._directories = directories
        self._closed = asyncio.Event()

    def close(self) -> None:
        """End every read as UNAVAILABLE, so that a server can drain; its client resumes later."""
        self._closed.set()

    async def read(
        self, name: TrainingJobName, start: int, *, follow: bool
    ) -> AsyncGenerator[tuple[bytes, int]]:
        """Yield the bytes of a log from `start`, each chunk with the position behind it.

        Args:
            name: Of the job.
            start: Bytes to pass over.
            follow: Go on until the job has ended.

        Raises:
            TrainingJobNotFoundError: There is no such job.
            DependencyUnavailableError: The trainer stops; read again to continue.
        """
        while True:
            # In this order: what a job writes before its end is read behind it.
            job = await asyncio.to_thread(self._store.get, name)
            while chunk := await asyncio.to_thread(_read, self._directories.log(name), start):
                start += len(chunk)
                yield chunk, start
            if is_final(job.state) or not follow:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_INTERVAL_S):  # Nothing tells that a file has grown.
                    await self._closed.wait()
                    raise DependencyUnavailableError("trainer")


def _read(path: Path, start: int) -> bytes:
    try:
        with path.open("rb") as log:
            log.seek(start)
            return log.read(_CHUNK_BYTES)
    except FileNotFoundError:  # No attempt has begun.
        return b""
