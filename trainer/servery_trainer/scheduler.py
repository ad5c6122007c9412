"""Drives every job from QUEUED to its end: which runs next, and what follows how it ended.

The database is the queue, so that a trainer killed at any moment finds all jobs again.
"""

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import DependencyUnavailableError
from servery_rpc.names import AliasName, DatasetName, ModelName, TrainingJobName
from servery_trainer.executor import Executor, Work
from servery_trainer.jobs import PUBLISHING, RUNNING, Outcome, crash
from servery_trainer.progress import Recorder
from servery_trainer.store import JobStore

log = logging.getLogger(__name__)

_FIRST_RETRY_S: Final = 0.5
_LAST_RETRY_S: Final = 30.0


class PublicationRefusedError(Exception):
    """The registry will not take the outcome of a job, however often it is asked."""

    def __init__(self, error: pb.JobError) -> None:
        super().__init__(error.message)
        self.error = error


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
            PublicationRefusedError: It refuses the bundle.
            PublicationWithdrawnError: `commit` was False; nothing is visible.
        """

    async def point(self, alias: AliasName, version: str) -> None:
        """Point `alias` at `version`.

        Raises:
            DependencyUnavailableError: The registry did not answer; try again.
            PublicationRefusedError: It refuses.
        """


class Scheduler:
    """Runs the jobs of a store.

    Args:
        store: The jobs.
        executor: Where their processes run.
        publisher: Where their outcomes go.
        dataset_path: Finds the file of a dataset.
        directory: Where each job gets a directory of its own.
        parallel_jobs: How many processes may run at a time.
        wake: Set by others when the queue may have grown.
        now: The clock.
    """

    def __init__(
        self,
        store: JobStore,
        executor: Executor,
        publisher: Publisher,
        *,
        dataset_path: Callable[[DatasetName], Path],
        directory: Path,
        parallel_jobs: int,
        wake: asyncio.Event,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._executor = executor
        self._publisher = publisher
        self._dataset_path = dataset_path
        self._directory = directory
        self._places = asyncio.Semaphore(parallel_jobs)
        self._now = now
        self._wake = wake
        self._processes: dict[TrainingJobName, asyncio.Task[Outcome]] = {}

    async def run(self) -> None:
        """Take up what an earlier trainer left, then run jobs, until this is cancelled.

        When it is cancelled, the processes are stopped; their jobs are queued again by the next
        `run`. A failure of the database ends it.
        """
        await asyncio.to_thread(self._store.recover, self._now())
        async with asyncio.TaskGroup() as tasks:
            for name in await asyncio.to_thread(self._store.publishing):
                tasks.create_task(self._publish(name))
            while True:
                await self._places.acquire()
                tasks.create_task(self._drive(await self._claim()))

    async def cancel(self, name: TrainingJobName) -> pb.TrainingJob:
        """Cancel a job and return it; one that runs is CANCELLED once its process has ended.

        Raises:
            TrainingJobNotFoundError: There is no such job.
            TrainingJobEndedError: Too late.
        """
        # To its end even if the caller leaves: the process must hear what the database knows.
        return await asyncio.shield(asyncio.ensure_future(self._cancel(name)))

    async def _cancel(self, name: TrainingJobName) -> pb.TrainingJob:
        job = await asyncio.to_thread(self._store.cancel, name, self._now())
        if job.state == RUNNING and (process := self._processes.get(name)):
            process.cancel()
        return job

    async def _claim(self) -> pb.TrainingJob:
        while True:
            self._wake.clear()
            job = await asyncio.to_thread(self._store.claim, self._now())
            if job:
                return job
            await self._wake.wait()

    async def _drive(self, job: pb.TrainingJob) -> None:
        name = TrainingJobName.parse(job.name)
        try:
            state = await self._execute(name, job)
        finally:
            self._places.release()
        if state == PUBLISHING:
            await self._publish(name)
        else:
            await self._tidy(name)

    async def _execute(self, name: TrainingJobName, job: pb.TrainingJob) -> int:
        """See the process of a RUNNING job to its end and return the state that follows."""
        dataset = self._dataset_path(DatasetName.parse(job.spec.dataset))
        work = Work(job.name, job.spec, dataset, self._job_directory(name))
        log.info("%s starts, attempt %s", job.name, job.attempt)
        async with Recorder(lambda progress: self._store.record(name, progress)) as recorder:
            process = asyncio.create_task(self._executor.run(work, recorder.put))
            self._processes[name] = process
            try:
                # A request to cancel either is in the database by now, or finds the process above.
                if await asyncio.to_thread(self._store.cancel_requested, name):
                    process.cancel()
                await asyncio.wait([process])
            finally:
                del self._processes[name]
                process.cancel()
                await asyncio.wait([process])
        outcome: Outcome = crash("cancelled", "the job was cancelled")
        if not process.cancelled():
            try:
                outcome = process.result()
            except Exception:
                log.exception("%s could not be run", job.name)
                outcome = crash("not started", "the trainer could not run the training process")
        return (await asyncio.to_thread(self._store.end_run, name, outcome, self._now())).state

    async def _publish(self, name: TrainingJobName) -> None:
        """Bring a PUBLISHING job to its end, however long the registry is away."""
        error: pb.JobError | None = None
        retry_s = _FIRST_RETRY_S
        while True:
            try:
                await self._try_to_publish(name)
                break
            except DependencyUnavailableError:
                log.warning("%s cannot be published now, next try in %s s", name, retry_s)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, _LAST_RETRY_S)
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
        await self._tidy(name)

    async def _try_to_publish(self, name: TrainingJobName) -> None:
        job = await asyncio.to_thread(self._store.get_publishing, name)
        if job is None:  # Cancelled since the last try.
            raise PublicationWithdrawnError
        version = job.result.version
        if not version:
            version = await self._publisher.register(
                job,
                self._job_directory(name) / "bundle",
                lambda: asyncio.to_thread(self._store.begin_commit, name),
            )
            await asyncio.to_thread(self._store.published, name, version)
        if job.spec.publication.alias:
            model = ModelName.parse(job.spec.publication.model)
            await self._publisher.point(AliasName(model, job.spec.publication.alias), version)

    async def _tidy(self, name: TrainingJobName) -> None:
        """Give the disk back; the log of the process and its spec stay."""
        for part in ("bundle", "checkpoint"):
            path = self._job_directory(name) / part
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)

    def _job_directory(self, name: TrainingJobName) -> Path:
        return self._directory / name.tenant / name.job
