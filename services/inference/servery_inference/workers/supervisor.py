"""Keeps a number of worker processes running, and gives them the connections."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

from servery_inference.backoff import waits
from servery_inference.workers.channel import Handle, PeerGoneError
from servery_inference.workers.process import WorkerProcess

_STABLE_S: Final = 30.0
"""Who ran for so long is replaced at once."""

Welcome = Callable[[WorkerProcess], Awaitable[None]]
"""Brings a process that began to where the others are; raises `CannotFollowError` if it cannot."""

log = logging.getLogger(__name__)


class CannotFollowError(Exception):
    """A new process cannot serve what the others serve. The message says why."""


class Supervisor:
    """The workers of a server. For one event loop.

    Args:
        count: How many there shall be.
        flags: Their settings.
        drain_s: How long one may drain.
    """

    def __init__(self, count: int, flags: Sequence[str], drain_s: float) -> None:
        self._count = count
        self._flags = flags
        self._drain_s = drain_s
        self._there: dict[int, WorkerProcess] = {}
        self._changed = asyncio.Condition()
        self._has_begun = False
        self.num_restarts = 0
        """Processes that were begun in the place of one that ended."""

    @asynccontextmanager
    async def running(
        self, handlers: Mapping[str, Handle], welcome: Welcome
    ) -> AsyncIterator[None]:
        """Keep the processes running for the length of the block; then let all drain.

        Args:
            handlers: What answers their requests, by method.
            welcome: Brings one that began to where the others are.

        Raises:
            RuntimeError: One cannot be started to begin with.
        """
        places = [
            asyncio.create_task(self._keep(place, handlers, welcome))
            for place in range(self._count)
        ]
        try:
            await self._all_begun(places)
            yield
        finally:
            for place in places:
                place.cancel()
            await asyncio.gather(*places, return_exceptions=True)

    @property
    def workers(self) -> list[WorkerProcess]:
        """The processes that run, by place, whether they serve yet or not."""
        there = (self._there[place] for place in sorted(self._there))
        return [worker for worker in there if not worker.channel.gone.is_set()]

    @property
    def serving(self) -> list[WorkerProcess]:
        """The processes that serve."""
        return [worker for worker in self.workers if worker.is_serving]

    async def some(self) -> list[WorkerProcess]:
        """Return the processes that run, once there is one; to begin with, once there are all."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._has_begun and self.workers)
        return self.workers

    async def one_serving(self) -> None:
        """Return once one serves."""
        if not self.serving:
            async with self._changed:
                await self._changed.wait_for(lambda: self.serving)

    async def all_serving(self) -> None:
        """Return once as many serve as there shall be."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.serving) == self._count)

    def give(self, door: bytes, connection: socket.socket) -> None:
        """Pass a connection to the worker that has the fewest; without one it is lost."""
        for worker in sorted(self.serving, key=lambda worker: worker.num_connections):
            if worker.give(door, connection):
                return
        log.warning("a connection is closed, for no worker serves now")

    async def _all_begun(self, places: Sequence["asyncio.Task[None]"]) -> None:
        async def begun() -> None:
            async with self._changed:
                await self._changed.wait_for(lambda: len(self._there) == self._count)
                self._has_begun = True
                self._changed.notify_all()

        waiting = asyncio.create_task(begun())
        try:
            await asyncio.wait({waiting, *places}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not self._has_begun:
            raise RuntimeError("a worker process does not start; the log says why")

    async def _keep(self, place: int, handlers: Mapping[str, Handle], welcome: Welcome) -> None:
        pauses = waits()
        while True:
            began = time.monotonic()
            try:
                await self._run_one(place, handlers, welcome)
            except CannotFollowError as error:
                log.error("worker %s cannot serve what the others serve: %s", place, error)
            except (PeerGoneError, OSError) as error:
                log.error("worker %s does not start: %s", place, error)
            except Exception:
                log.exception("unhandled error about worker %s", place)
            if not self._has_begun:
                return
            if time.monotonic() - began > _STABLE_S:
                pauses = waits()
            pause_s = next(pauses)
            log.error("worker %s ended; another one begins in %.1f s", place, pause_s)
            await asyncio.sleep(pause_s)
            self.num_restarts += 1

    async def _run_one(self, place: int, handlers: Mapping[str, Handle], welcome: Welcome) -> None:
        async with WorkerProcess.running(place, self._flags, handlers, self._drain_s) as worker:
            self._there[place] = worker
            try:
                await self._tell()
                await welcome(worker)
                log.info("worker %s serves as process %s", place, worker.pid)
                await self._tell()
                await worker.channel.gone.wait()
            finally:
                del self._there[place]

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
