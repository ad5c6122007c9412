"""Drives every study from RUNNING to its end: search, choose, publish.

A study that was stopped with its trainer goes on in the next one: its trials are jobs, which go on
by themselves, and what was seen of them is in the database.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime

from servery.trainer.v1 import training_pb2
from servery.trainer.v1 import tuning_pb2 as pb
from servery_rpc.errors import DependencyUnavailableError, ServeryError
from servery_rpc.names import StudyName, TrainingJobName
from servery_trainer.job_directories import JobDirectories
from servery_trainer.jobs import CANCELLED, SUCCEEDED, TrainingJobEndedError, crash
from servery_trainer.resources import Resources
from servery_trainer.scheduler import Scheduler
from servery_trainer.store import queued
from servery_trainer.studies import Plan, assignments, job_error, no_trial_completed, ranked
from servery_trainer.study_run import JobEvents, StudyRun
from servery_trainer.study_store import StudyStore
from servery_trainer.terms import Capacity, Terms

log = logging.getLogger(__name__)


class Tuner:
    """Runs the studies of a store.

    Args:
        studies: The studies.
        scheduler: Cancels the jobs of trials.
        job_events: Tells what they do.
        directories: Where they leave their models.
        capacity: What all jobs together may use.
        now: The clock.
    """

    def __init__(
        self,
        studies: StudyStore,
        scheduler: Scheduler,
        job_events: JobEvents,
        directories: JobDirectories,
        capacity: Capacity,
        now: Callable[[], datetime],
    ) -> None:
        self._studies = studies
        self._scheduler = scheduler
        self._job_events = job_events
        self._directories = directories
        self._capacity = capacity
        self._now = now
        self._created: asyncio.Queue[StudyName] = asyncio.Queue()
        self._driven: set[StudyName] = set()
        self._runs: dict[StudyName, StudyRun] = {}

    async def run(self) -> None:
        """Take up the studies an earlier trainer left, then run new ones, until cancelled."""
        for name in await asyncio.to_thread(self._studies.unfinished):
            self.start(name)
        async with asyncio.TaskGroup() as tasks:
            while True:
                name = await self._created.get()
                if name not in self._driven:  # Else its creation was asked for twice.
                    self._driven.add(name)
                    tasks.create_task(self._drive(name))

    def start(self, name: StudyName) -> None:
        """Run a study that was created."""
        self._created.put_nowait(name)

    async def cancel(self, name: StudyName) -> pb.Study:
        """Stop a study and return it; it is CANCELLED once its trials have ended.

        Raises:
            StudyNotFoundError: There is no such study.
            StudyEndedError: Too late.
        """
        study = await asyncio.to_thread(self._studies.cancel, name)
        if run := self._runs.get(name):
            run.stop()
        if study.publication_job:
            with contextlib.suppress(TrainingJobEndedError):
                await self._scheduler.cancel(TrainingJobName.parse(study.publication_job))
        return study

    async def _drive(self, name: StudyName) -> None:
        try:
            study = await asyncio.to_thread(self._studies.get, name)
            if study.state == pb.STUDY_STATE_RUNNING:
                await self._search(name, study)
                study = await asyncio.to_thread(self._studies.get, name)
            if study.state == pb.STUDY_STATE_PUBLISHING:
                await self._publish(name, study.publication_job)
        except* DependencyUnavailableError:
            log.info("%s goes on in the next trainer", name)
        except* Exception as errors:
            log.exception("%s cannot go on", name)
            await self._end(name, pb.STUDY_STATE_FAILED, error=_error_of(errors))

    async def _search(self, name: StudyName, study: pb.Study) -> None:
        """Run trials until the budget is used up or someone cancels, then decide."""
        plan = Plan.parse(study, self._capacity)
        run = StudyRun(name, plan, self._studies, self._scheduler, self._job_events, self._now)
        self._runs[name] = run
        if await asyncio.to_thread(self._studies.cancel_requested, name):
            run.stop()
        began_s = study.create_time.ToDatetime(UTC).timestamp()
        left_s = began_s + plan.max_duration_s - self._now().timestamp()
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(left_s, run.stop) if plan.max_duration_s else None
        try:
            await run.search()
        finally:
            del self._runs[name]
            if alarm:
                alarm.cancel()
        await self._decide(name, plan)

    async def _decide(self, name: StudyName, plan: Plan) -> None:
        trials = [trial for trial, _ in await asyncio.to_thread(self._studies.trials, name)]
        best = ranked(trials, metric=plan.metric)
        if await asyncio.to_thread(self._studies.cancel_requested, name):
            await self._end(name, pb.STUDY_STATE_CANCELLED)
        elif not best:
            await self._end(name, pb.STUDY_STATE_FAILED, error=no_trial_completed(len(trials)))
        elif plan.without_publication:
            await self._end(name, pb.STUDY_STATE_SUCCEEDED)
        else:
            terms = Terms(resources=Resources(0, 0))  # It starts no process.
            spec = plan.trial_spec(assignments(best[0]))
            job_name = TrainingJobName(name.tenant, uuid.uuid4().hex)
            job = queued(str(job_name), spec, terms, self._now())
            job.outcome_of = best[0].training_job
            await asyncio.to_thread(self._studies.publish, name, job, self._now())

    async def _publish(self, name: StudyName, job_name: str) -> None:
        """See the publication of the best trial to its end."""
        job = training_pb2.TrainingJob()
        watch = self._job_events.watch(TrainingJobName.parse(job_name), 0)
        async with aclosing(watch) as events:
            async for event in events:
                job = event.training_job
        if job.state == SUCCEEDED:
            await self._end(name, pb.STUDY_STATE_SUCCEEDED, version=job.result.version)
        elif job.state == CANCELLED:
            await self._end(name, pb.STUDY_STATE_CANCELLED)
        else:
            await self._end(name, pb.STUDY_STATE_FAILED, error=job.error)

    async def _end(
        self,
        name: StudyName,
        state: pb.StudyState.ValueType,
        *,
        version: str = "",
        error: training_pb2.JobError | None = None,
    ) -> None:
        """End a study; the models of its trials have been chosen from."""
        for trial, _ in await asyncio.to_thread(self._studies.trials, name):
            if trial.training_job:
                job = TrainingJobName.parse(trial.training_job)
                await asyncio.to_thread(self._directories.discard_bundle, job)
        await asyncio.to_thread(
            self._studies.end, name, state, self._now(), version=version, error=error
        )


def _error_of(errors: ExceptionGroup[Exception]) -> training_pb2.JobError:
    """Return the first of some errors as a message."""
    error = errors.exceptions[0]
    if isinstance(error, ExceptionGroup):
        return _error_of(error)
    if isinstance(error, ServeryError):
        return job_error(error)
    return crash("study", "the trainer could not go on with the study; its log says why")
