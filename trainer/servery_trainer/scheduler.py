"""Drives every job from QUEUED to its end: which runs next, and what follows how it ended.

The database is the queue, so that a trainer killed at any moment finds all jobs again.
"""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import DependencyUnavailableError, ServeryError
from servery_rpc.names import DatasetName, TrainingJobName
from servery_trainer.durable import is_full
from servery_trainer.executor import Executor, Work
from servery_trainer.job_directories import JobDirectories, link_files
from servery_trainer.jobs import (
    PUBLISHING,
    RUNNING,
    Crashed,
    Outcome,
    TrainingStorageFullError,
    crash,
    deadline_passed,
    is_final,
)
from servery_trainer.progress import Recorder
from servery_trainer.publication import Publications
from servery_trainer.resources import Resources
from servery_trainer.store import JobStore

log = logging.getLogger(__name__)


class Scheduler:
    """Runs the jobs of a store.

    Args:
        store: The jobs.
        executor: Where their processes run.
        publications: What brings their outcomes to the registry.
        make_ready: Brings what a process needs beside its data; what it raises ends the job.
        dataset_path: Finds the file of a dataset.
        directories: Where each job has its directory.
        wake: Set by others when another job may start.
        now: The clock.
    """

    def __init__(
        self,
        store: JobStore,
        executor: Executor,
        publications: Publications,
        *,
        make_ready: Callable[[Work], Awaitable[None]],
        dataset_path: Callable[[DatasetName], Path],
        directories: JobDirectories,
        wake: asyncio.Event,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._executor = executor
        self._publications = publications
        self._make_ready = make_ready
        self._dataset_path = dataset_path
        self._directories = directories
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
                tasks.create_task(self._publications.bring_to_end(name))
            while True:
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
            due_s = await asyncio.to_thread(self._store.next_due_s, self._now())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due_s):
                    await self._wake.wait()

    async def _drive(self, job: pb.TrainingJob) -> None:
        name = TrainingJobName.parse(job.name)
        outcome = await (self._adopt(job) if job.outcome_of else self._execute(name, job))
        ended = await asyncio.to_thread(self._store.end_run, name, outcome, self._now())
        if ended.state == PUBLISHING:
            await self._publications.bring_to_end(name)
        elif is_final(ended.state):
            await asyncio.to_thread(self._directories.tidy, ended, self._now())

    async def _adopt(self, job: pb.TrainingJob) -> Outcome:
        """Take over what another job proved."""
        source = TrainingJobName.parse(job.outcome_of)
        try:
            bundle = self._directories.of(TrainingJobName.parse(job.name)) / "bundle"
            await asyncio.to_thread(link_files, self._directories.of(source) / "bundle", bundle)
        except OSError:
            log.exception("the outcome of %s is not there any more", source)
            return crash("outcome lost", f"what {source} made is not there any more")
        return (await asyncio.to_thread(self._store.get, source)).result

    async def _execute(self, name: TrainingJobName, job: pb.TrainingJob) -> Outcome:
        """See the process of a RUNNING job to its end."""
        left_s = None
        if job.deadline_s:
            ends = job.start_time.ToDatetime(UTC) + timedelta(seconds=job.deadline_s)
            left_s = (ends - self._now()).total_seconds()
            if left_s <= 0:
                return deadline_passed(job.deadline_s)
        try:
            work = await self._prepare(name, job, left_s)
            await self._make_ready(work)
        except OSError as error:
            return self._not_started(job, error)
        except DependencyUnavailableError as error:
            return Crashed(_job_error(error))
        except ServeryError as error:
            return _job_error(error)
        log.info("%s starts, attempt %s", job.name, job.attempt)
        async with Recorder(lambda progress: self._store.record(name, progress)) as recorder:
            process = asyncio.create_task(self._executor.run(work, recorder.put))
            self._processes[name] = process
            try:
                # A request to cancel either is in the database by now, or finds the process above.
                if await asyncio.to_thread(self._store.cancel_requested, name):
                    process.cancel()
                await asyncio.wait([process], timeout=left_s)
            finally:
                del self._processes[name]
                late = not process.done()
                process.cancel()
                await asyncio.wait([process])
        if process.cancelled():
            return deadline_passed(job.deadline_s) if late else crash("cancelled", "cancelled")
        if failure := process.exception():
            return self._not_started(job, failure)
        return process.result()

    def _not_started(self, job: pb.TrainingJob, error: BaseException) -> Outcome:
        log.error("%s could not be run", job.name, exc_info=error)
        if isinstance(error, OSError) and is_full(error):
            return _job_error(
                TrainingStorageFullError(shutil.disk_usage(self._directories.root).free)
            )
        return Crashed(crash("not started", "the trainer could not run the training process"))

    async def _prepare(
        self, name: TrainingJobName, job: pb.TrainingJob, left_s: float | None
    ) -> Work:
        dataset = self._dataset_path(DatasetName.parse(job.spec.dataset))
        # A job that an earlier release queued does not say how many cores.
        resources = Resources(max(1, job.resources.cores), job.resources.memory_bytes)
        work = Work(job.name, job.spec, dataset, self._directories.of(name), resources, left_s)
        if job.resume_from and not work.checkpoint.exists():
            earlier = self._directories.of(TrainingJobName.parse(job.resume_from))
            with contextlib.suppress(FileNotFoundError):  # Then it starts anew.
                await asyncio.to_thread(link_files, earlier / "checkpoint", work.checkpoint)
        return work


def _job_error(error: ServeryError) -> pb.JobError:
    return pb.JobError(reason=error.reason, message=str(error), metadata=error.metadata)
