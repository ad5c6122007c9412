"""Tells workers which of the versions that they loaded answer, and that the server is ready."""

import asyncio
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from servery_inference.repository import Repository
from servery_inference.workers.channel import Parcel
from servery_inference.workers.process import WorkerProcess
from servery_inference.workers.shared_loader import SharedServable
from servery_inference.workers.supervisor import Supervisor


class Announcements:
    """Tells the workers what to serve. For one event loop.

    Args:
        repository: Decides.
        supervisor: The workers.
    """

    def __init__(self, repository: Repository, supervisor: Supervisor) -> None:
        self._repository = repository
        self._supervisor = supervisor
        self._told: Mapping[str, Any] = {}
        self._answers: set[asyncio.Future[Parcel]] = set()
        self._is_ready = False
        repository.on_change(self._tell_changes)

    def begin(self, worker: WorkerProcess) -> None:
        """Tell a worker that has loaded all there is, and from now on what changes."""
        self._send([worker], "serve", self._lines())
        if self._is_ready:
            self._send([worker], "ready")
        worker.is_following = True

    def announce_ready(self) -> None:
        """Let all workers say that the server is ready."""
        self._is_ready = True
        self._send(self._following(), "ready")

    async def heard(self) -> None:
        """Return once all workers do what they were told so far."""
        if self._answers:
            await asyncio.wait(self._answers)

    def _tell_changes(self) -> None:
        lines = self._lines()
        changes = {name: line for name, line in lines.items() if self._told.get(name) != line}
        self._told = lines
        if changes:
            self._send(self._following(), "serve", changes)

    def _lines(self) -> dict[str, Any]:
        return {
            name: {
                "current": current,
                "loads": {
                    str(version): servable.number
                    for version, servable in ready.items()
                    if isinstance(servable, SharedServable)
                },
            }
            for name, current, ready in self._repository.lines()
        }

    def _following(self) -> list[WorkerProcess]:
        return [worker for worker in self._supervisor.workers if worker.is_following]

    def _send(
        self,
        workers: Sequence[WorkerProcess],
        method: str,
        fields: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        for worker in workers:
            answer = worker.channel.send(method, fields)
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)
