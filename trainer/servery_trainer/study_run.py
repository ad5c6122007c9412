"""The search of one study: makes trials while there is budget, and watches their jobs."""

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Final

from servery.trainer.v1 import training_pb2
from servery.trainer.v1 import tuning_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_rpc.names import StudyName, TrainingJobName
from servery_trainer.event_log import EventLog
from servery_trainer.jobs import CANCELLED, FAILED, SUCCEEDED, TrainingJobEndedError
from servery_trainer.scheduler import Scheduler
from servery_trainer.search import Past, Search
from servery_trainer.store import queued
from servery_trainer.studies import Plan, assignments, hopeless, job_error, unmeasured
from servery_trainer.study_store import Curve, StudyStore

log = logging.getLogger(__name__)

JobEvents = EventLog[training_pb2.WatchTrainingJobResponse]

_AFTER: Final = {
    SUCCEEDED: pb.TRIAL_STATE_COMPLETED,
    FAILED: pb.TRIAL_STATE_FAILED,
    CANCELLED: pb.TRIAL_STATE_CANCELLED,
}
"""How a trial ends after its job."""


class StudyRun:
    """The search of one study, from where it stands.

    Args:
        name: The study.
        plan: What it does.
        studies: Where it is kept.
        scheduler: Cancels the jobs of trials.
        job_events: Tells what they do.
        now: The clock.
    """

    def __init__(
        self,
        name: StudyName,
        plan: Plan,
        studies: StudyStore,
        scheduler: Scheduler,
        job_events: JobEvents,
        now: Callable[[], datetime],
    ) -> None:
        self._name = name
        self._plan = plan
        self._studies = studies
        self._scheduler = scheduler
        self._job_events = job_events
        self._now = now
        self._stop = asyncio.Event()
        self._followers: dict[asyncio.Task[None], str] = {}

    def stop(self) -> None:
        """Make no more trials and cancel those that run."""
        self._stop.set()

    async def search(self) -> None:
        """Return when all trials have ended: those of the budget, or after `stop`.

        If this is cancelled, jobs go on; another `search` takes them up.
        """
        past = await asyncio.to_thread(self._studies.trials, self._name)
        search = await asyncio.to_thread(self._remember, past)
        stopping = asyncio.create_task(self._stop.wait())
        try:
            async with asyncio.TaskGroup() as tasks:
                for trial, curve in past:
                    if trial.state == pb.TRIAL_STATE_RUNNING:
                        self._follow(tasks, search, trial, dict(curve))
                    elif trial.state == pb.TRIAL_STATE_PRUNED:
                        await self._cancel_job(trial.training_job)
                await self._make_trials(tasks, search, stopping, [trial for trial, _ in past])
                while self._followers and not self._stop.is_set():
                    await self._wait(stopping)
                for job in list(self._followers.values()):  # They end meanwhile.
                    await self._cancel_job(job)
        finally:
            stopping.cancel()

    def _remember(self, trials: Sequence[tuple[pb.Trial, Curve]]) -> Search:
        return Search(
            self._plan.parameters,
            self._plan.sampler,
            self._plan.pruner,
            self._plan.seed,
            minimize=self._plan.minimize,
            past=[
                Past(
                    assignments(trial),
                    curve,
                    trial.state,
                    trial.value if trial.HasField("value") else None,
                )
                for trial, curve in trials
            ],
        )

    async def _make_trials(
        self,
        tasks: asyncio.TaskGroup,
        search: Search,
        stopping: asyncio.Task[bool],
        trials: list[pb.Trial],
    ) -> None:
        """Keep as many trials running as may, until the budget is made; `trials` grows."""
        while len(trials) < self._plan.max_trials and not self._stop.is_set():
            if len(self._followers) >= self._plan.parallel_trials:
                await self._wait(stopping)
                continue
            if hopeless(trials):
                log.warning("%s ends: its last trials failed", self._name)
                return
            trial = await self._make(search, len(trials) + 1)
            trials.append(trial)
            if trial.training_job:
                self._follow(tasks, search, trial, {})

    async def _wait(self, stopping: asyncio.Task[bool]) -> None:
        """Return when a trial has ended, or `stop` was called."""
        await asyncio.wait({*self._followers, stopping}, return_when=asyncio.FIRST_COMPLETED)

    async def _make(self, search: Search, number: int) -> pb.Trial:
        values = await asyncio.to_thread(search.ask)
        trial = pb.Trial(
            name=f"{self._name}/trials/{number}",
            number=number,
            state=pb.TRIAL_STATE_RUNNING,
            assignments=[
                pb.Assignment(path=path, value=json.dumps(value)) for path, value in values.items()
            ],
        )
        job: training_pb2.TrainingJob | None = None
        try:
            spec = self._plan.trial_spec(values)
        except FieldInvalidError as error:
            trial.state = pb.TRIAL_STATE_FAILED
            trial.error.CopyFrom(job_error(error))
            await asyncio.to_thread(search.tell, number, trial.state, None)
        else:
            name = TrainingJobName(self._name.tenant, uuid.uuid4().hex)
            job = queued(str(name), spec, self._plan.terms, self._now())
            job.study = str(self._name)
            trial.training_job = job.name
        await asyncio.to_thread(self._studies.add_trial, self._name, trial, job, self._now())
        return trial

    def _follow(
        self, tasks: asyncio.TaskGroup, search: Search, trial: pb.Trial, curve: dict[int, float]
    ) -> None:
        follower = tasks.create_task(self._see_to_its_end(search, trial, curve))
        self._followers[follower] = trial.training_job
        follower.add_done_callback(self._followers.pop)

    async def _see_to_its_end(
        self, search: Search, trial: pb.Trial, curve: dict[int, float]
    ) -> None:
        job = training_pb2.TrainingJob()
        name = TrainingJobName.parse(trial.training_job)
        async with aclosing(self._job_events.watch(name, 0)) as events:
            async for event in events:
                if event.HasField("training_job"):
                    job = event.training_job
                elif trial.state == pb.TRIAL_STATE_RUNNING:
                    await self._note(search, trial, curve, event.progress)
        if trial.state == pb.TRIAL_STATE_RUNNING:
            self._conclude(trial, job)
            value = trial.value if trial.state == pb.TRIAL_STATE_COMPLETED else None
            await asyncio.to_thread(search.tell, trial.number, trial.state, value)
            await self._write(trial, curve)

    async def _note(
        self,
        search: Search,
        trial: pb.Trial,
        curve: dict[int, float],
        progress: training_pb2.Progress,
    ) -> None:
        """Write what an epoch came to, and stop the trial if it is not promising."""
        value = self._plan.live(progress)
        if value is None or progress.epoch in curve:
            return  # Steps between two epochs, or another attempt at the same.
        curve[progress.epoch] = trial.value = value
        trial.epoch = progress.epoch
        if await asyncio.to_thread(search.report, trial.number, trial.epoch, value):
            trial.state = pb.TRIAL_STATE_PRUNED
            await asyncio.to_thread(search.tell, trial.number, trial.state, None)
        await self._write(trial, curve)
        if trial.state == pb.TRIAL_STATE_PRUNED:
            await self._cancel_job(trial.training_job)

    def _conclude(self, trial: pb.Trial, job: training_pb2.TrainingJob) -> None:
        """Take the outcome of the job for that of the trial."""
        trial.state = _AFTER[job.state]
        if trial.state == pb.TRIAL_STATE_FAILED:
            trial.error.CopyFrom(job.error)
        if trial.state != pb.TRIAL_STATE_COMPLETED:
            return
        value = self._plan.measure(job.result.epochs)
        if value is None:
            trial.state = pb.TRIAL_STATE_FAILED
            trial.error.CopyFrom(unmeasured())
        else:
            trial.value = value
            trial.epoch = job.result.epochs[-1].number

    async def _write(self, trial: pb.Trial, curve: dict[int, float]) -> None:
        await asyncio.to_thread(self._studies.update_trial, self._name, trial, dict(curve))

    async def _cancel_job(self, job: str) -> None:
        with contextlib.suppress(TrainingJobEndedError):
            await self._scheduler.cancel(TrainingJobName.parse(job))
