"""What becomes of a job when its registry fails, as far as no real registry can be made to."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import DependencyUnavailableError
from servery_rpc.names import AliasName
from servery_trainer.database import open_database
from servery_trainer.event_log import EventLog
from servery_trainer.executor import Executor, Work
from servery_trainer.job_directories import JobDirectories
from servery_trainer.jobs import FAILED, SUCCEEDED, Outcome
from servery_trainer.local_executor import LocalExecutor
from servery_trainer.progress import JOBS
from servery_trainer.publication import (
    Patience,
    PublicationRefusedError,
    Publications,
    RegistryFaultError,
)
from servery_trainer.scheduler import Scheduler
from servery_trainer.store import JobStore
from tests.trainer.service import CAPACITY, queued_job, ready, spec

NAME = "tenants/default/trainingJobs/a"
VERSION = "tenants/default/models/succeeds/versions/7"
SOON = Patience(first_retry_s=0.01, last_retry_s=0.01, faults=3, away_s=0.5)


@dataclass
class FailingRegistry:
    """A `Publisher` that fails."""

    register_error: Exception | None = None
    point_error: Exception | None = None
    tries: int = 0

    async def register(
        self, job: pb.TrainingJob, bundle: Path, commit: Callable[[], Awaitable[bool]]
    ) -> str:
        self.tries += 1
        if self.register_error:
            raise self.register_error
        return VERSION

    async def point(self, alias: AliasName, version: str) -> None:
        self.tries += 1
        if self.point_error:
            raise self.point_error


@dataclass
class FullDisk:
    """An `Executor` that has no room for the files of a job."""

    async def run(self, work: Work, on_progress: Callable[[pb.Progress], None]) -> Outcome:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def publishing(
    directory: Path, executor: Executor, registry: FailingRegistry
) -> AsyncIterator[pb.TrainingJob]:
    """Run one job to its end."""
    engine = open_database(directory / "t.db")
    log = EventLog(engine, asyncio.get_running_loop(), JOBS)
    store = JobStore(engine, CAPACITY, log.changed)
    directories = JobDirectories(directory)
    scheduler = Scheduler(
        store,
        executor,
        Publications(store, registry, directories, now, SOON),
        make_ready=ready,
        dataset_path=lambda _: directory / "data.csv",
        directories=directories,
        wake=asyncio.Event(),
        now=now,
    )
    asked = spec(f"tenants/default/datasets/{'0' * 64}", "succeeds", alias="production")
    store.create(queued_job(NAME, now(), asked), None, now())
    running = asyncio.create_task(scheduler.run())
    job = pb.TrainingJob()
    async with asyncio.timeout(20):
        async for event in log.watch(NAME, 0):
            job = event.training_job
    yield job
    running.cancel()
    await asyncio.wait([running])
    engine.dispose()


async def test_a_registry_that_keeps_failing_is_not_asked_for_ever(
    tmp_path: Path, command: Sequence[str]
) -> None:
    registry = FailingRegistry(RegistryFaultError("internal error"))
    async with publishing(tmp_path, LocalExecutor(command=command), registry) as job:
        assert job.state == FAILED
        assert job.error.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE
        assert registry.tries == 3


async def test_a_registry_that_stays_away_is_not_waited_for_for_ever(
    tmp_path: Path, command: Sequence[str]
) -> None:
    registry = FailingRegistry(DependencyUnavailableError("registry"))
    async with publishing(tmp_path, LocalExecutor(command=command), registry) as job:
        assert job.state == FAILED
        assert job.error.reason == reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE


async def test_a_version_whose_alias_is_refused_exists_all_the_same(
    tmp_path: Path, command: Sequence[str]
) -> None:
    refused = pb.JobError(reason=reasons.ERROR_REASON_PERMISSION_DENIED, message="not this alias")
    registry = FailingRegistry(point_error=PublicationRefusedError(refused))
    async with publishing(tmp_path, LocalExecutor(command=command), registry) as job:
        assert (job.state, job.result.version) == (SUCCEEDED, VERSION)
        assert list(job.warnings) == [refused]


async def test_a_full_disk_is_named_and_not_tried_again(tmp_path: Path) -> None:
    async with publishing(tmp_path, FullDisk(), FailingRegistry()) as job:
        assert (job.state, job.attempt) == (FAILED, 1)
        assert job.error.reason == reasons.ERROR_REASON_TRAINING_STORAGE_FULL
        assert int(job.error.metadata["free_bytes"]) > 0
        assert str(tmp_path) not in job.error.message
