"""Brings what jobs proved to the registry, which may be away, fail or refuse."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import DependencyUnavailableError
from servery_rpc.names import AliasName, ModelName, TrainingJobName
from servery_trainer.job_directories import JobDirectories
from servery_trainer.jobs import crash
from servery_trainer.store import JobStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a job is tried to be published."""

    first_retry_s: float = 0.5
    """Between the first two tries; then twice as long each time."""
    last_retry_s: float = 30.0
    """Between two tries at most."""
    faults: int = 8
    """Tries that the registry answers with a fault of its own: about a minute of them."""
    away_s: float = 24 * 3600.0
    """How long the registry may be away."""


_PATIENCE: Final = Patience()


class PublicationRefusedError(Exception):
    """The registry will not take the outcome of a job, however often it is asked."""

    def __init__(self, error: pb.JobError) -> None:
        super().__init__(error.message)
        self.error = error


class RegistryFaultError(Exception):
    """The registry answered, but with a fault of its own; it may be gone next time."""


class PublicationWithdrawnError(Exception):
    """The job was cancelled before its version could become visible."""


class Publisher(Protocol):
    """Brings the outcome of jobs to the registry."""

    async def register(
        self, job: pb.TrainingJob, bundle: Path, commit: Callable[[], Awaitable[bool]]
    ) -> str:
        """Upload the bundle and return the name of the version; again for the same job is safe.

        Args:
            job: Which, with its result.
            bundle: Its files.
            commit: Awaited before the last bytes are sent; False forbids to send them.

        Raises:
            DependencyUnavailableError: The registry did not answer; try again.
            RegistryFaultError: It could not do it; try again, but not for ever.
            PublicationRefusedError: It refuses the bundle.
            PublicationWithdrawnError: `commit` was False; nothing is visible.
        """

    async def point(self, alias: AliasName, version: str) -> None:
        """Point `alias` at `version`.

        Raises:
            DependencyUnavailableError: The registry did not answer; try again.
            RegistryFaultError: It could not do it; try again, but not for ever.
            PublicationRefusedError: It refuses.
        """


class Publications:
    """Publishes the jobs of a store that are PUBLISHING.

    Args:
        store: The jobs.
        publisher: Where their outcomes go.
        directories: Where each job has its directory.
        now: The clock.
        patience: How long a job is tried to be published.
    """

    def __init__(
        self,
        store: JobStore,
        publisher: Publisher,
        directories: JobDirectories,
        now: Callable[[], datetime],
        patience: Patience = _PATIENCE,
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._directories = directories
        self._now = now
        self._patience = patience

    async def bring_to_end(self, name: TrainingJobName) -> None:
        """Bring a PUBLISHING job to its end, though the registry may be away for long."""
        error: pb.JobError | None = None
        patience = self._patience
        retry_s, faults, since = patience.first_retry_s, 0, self._now()
        while True:
            try:
                await self._try_to_publish(name)
                break
            except (DependencyUnavailableError, RegistryFaultError) as failure:
                faults += isinstance(failure, RegistryFaultError)
                away_s = (self._now() - since).total_seconds()
                if faults == patience.faults or away_s > patience.away_s:
                    error = _not_published(failure)
                    break
                log.warning("%s cannot be published now, next try in %s s", name, retry_s)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, patience.last_retry_s)
            except PublicationWithdrawnError:
                break  # It is CANCELLED already.
            except PublicationRefusedError as refused:
                error = refused.error
                break
            except Exception:
                log.exception("%s cannot be published", name)
                error = crash("not published", "the trainer could not publish the model it made")
                break
        await asyncio.to_thread(self._store.end_publication, name, error, self._now())
        job = await asyncio.to_thread(self._store.get, name)
        await asyncio.to_thread(self._directories.tidy, job, self._now())

    async def _try_to_publish(self, name: TrainingJobName) -> None:
        job = await asyncio.to_thread(self._store.get_publishing, name)
        if job is None:  # Cancelled since the last try.
            raise PublicationWithdrawnError
        version = job.result.version
        if not version:
            version = await self._publisher.register(
                job,
                self._directories.of(name) / "bundle",
                lambda: asyncio.to_thread(self._store.begin_commit, name),
            )
            await asyncio.to_thread(self._store.published, name, version)
        if job.spec.publication.alias:
            model = ModelName.parse(job.spec.publication.model)
            await self._publisher.point(AliasName(model, job.spec.publication.alias), version)


def _not_published(failure: Exception) -> pb.JobError:
    """Return why a registry that was asked often enough did not take the model."""
    away = isinstance(failure, DependencyUnavailableError)
    return pb.JobError(
        reason=reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        message="the model could not be published: "
        + ("the registry was away for too long" if away else f"the registry fails: {failure}"),
        metadata={"service": "registry"},
    )
