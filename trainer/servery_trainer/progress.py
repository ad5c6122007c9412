"""The event log of each job: what `WatchTrainingJob` replays, then follows.

State changes stay for ever. Of progress that tells the same figures of the same epoch only the
newest stays, so the log of a job grows with its epochs and not with its steps, and a watcher who
falls behind skips what is stale.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Final, Self

from sqlalchemy import Connection, Engine, delete, insert, select

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import DependencyUnavailableError, FieldInvalidError
from servery_rpc.names import TrainingJobName
from servery_trainer.database import JOB_EVENT, TRAINING_JOB, reads
from servery_trainer.jobs import TrainingJobNotFoundError, is_final, visible

_BATCH: Final = 200
_INTERVAL_S: Final = 0.1
_STATE: Final = ""


def append_state(connection: Connection, job_id: int, job: pb.TrainingJob) -> None:
    """Log that `job` is in a new state."""
    _append(connection, job_id, _STATE, pb.WatchTrainingJobResponse(training_job=visible(job)))


def append_progress(connection: Connection, job_id: int, progress: pb.Progress) -> None:
    """Log `progress` in place of what it makes stale."""
    subject = ":".join(map(str, (progress.phase, progress.epoch, *sorted(progress.metrics))))[:200]
    connection.execute(
        delete(JOB_EVENT).where(JOB_EVENT.c.job_id == job_id, JOB_EVENT.c.subject == subject)
    )
    _append(connection, job_id, subject, pb.WatchTrainingJobResponse(progress=progress))


def first_state(connection: Connection, job_id: int) -> pb.TrainingJob:
    """Return the job as it was created."""
    message = connection.execute(
        select(JOB_EVENT.c.message)
        .where(JOB_EVENT.c.job_id == job_id)
        .order_by(JOB_EVENT.c.id)
        .limit(1)
    ).scalar_one()
    return pb.WatchTrainingJobResponse.FromString(message).training_job


class Recorder:
    """Logs the progress of one running job, at most ten times a second, off the event loop.

    Use it as a context manager: leaving it logs what is left.

    Args:
        write: Logs some progress, in order; blocks.
    """

    def __init__(self, write: Callable[[Sequence[pb.Progress]], None]) -> None:
        self._write = write
        self._pending: list[pb.Progress] = []
        self._arrived = asyncio.Event()
        self._closed = asyncio.Event()

    def put(self, progress: pb.Progress) -> None:
        """Have `progress` logged soon, unless newer progress of its phase overtakes it."""
        coalesce(self._pending, progress)
        self._arrived.set()

    async def __aenter__(self) -> Self:
        self._writing = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed.set()
        self._arrived.set()
        await self._writing

    async def _run(self) -> None:
        while self._pending or not self._closed.is_set():
            await self._arrived.wait()
            self._arrived.clear()
            if self._pending:
                batch, self._pending = self._pending, []
                await asyncio.to_thread(self._write, batch)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_INTERVAL_S):
                    await self._closed.wait()


def coalesce(pending: list[pb.Progress], new: pb.Progress) -> None:
    """Add `new` to what waits to be logged; of one phase only the newest waits."""
    if pending and pending[-1].phase == new.phase:
        pending[-1] = new
    else:
        pending.append(new)


def parse_resume_token(name: TrainingJobName, token: str) -> int:
    """Return the id of the event behind which a watch of `name` continues; 0 for an empty token.

    Raises:
        FieldInvalidError: It is not a token of this job.
    """
    if not token:
        return 0
    job, colon, event = token.rpartition(":")
    if job != name.job or not colon or not event.isdecimal() or len(event) > 18:
        raise FieldInvalidError(
            "resume_token", token, "be empty or the resume_token of a response about this job"
        )
    return int(event)


class EventLog:
    """Lets any number of watchers follow the events of jobs, without polling.

    Args:
        engine: The database with the events.
        loop: The event loop the watchers live on.
    """

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = reads(engine)
        self._loop = loop
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._closed = False

    def changed(self, name: str) -> None:
        """Wake who watches the job `name`. Call it from any thread, after the commit."""
        self._loop.call_soon_threadsafe(self._wake, [name])

    def close(self) -> None:
        """End every watch as UNAVAILABLE, so that a server can drain; its client resumes later."""
        self._closed = True
        self._wake(list(self._watchers))

    async def watch(
        self, name: TrainingJobName, after: int
    ) -> AsyncGenerator[pb.WatchTrainingJobResponse]:
        """Yield the events of a job behind the event `after`, until the one in which it has ended.

        Raises:
            TrainingJobNotFoundError: There is no such job.
            DependencyUnavailableError: The trainer stops; watch again to continue.
        """
        wake = asyncio.Event()
        self._watchers[str(name)].add(wake)
        try:
            while True:
                wake.clear()
                events, more, ended = await asyncio.to_thread(self._read, name, after)
                for after, event in events:
                    event.resume_token = f"{name.job}:{after}"
                    yield event
                if self._closed:
                    raise DependencyUnavailableError("trainer")
                if ended and not more:
                    return
                if not more:
                    await wake.wait()
        finally:
            self._watchers[str(name)].discard(wake)
            if not self._watchers[str(name)]:
                del self._watchers[str(name)]

    def _wake(self, names: Iterable[str]) -> None:
        for name in names:
            for event in self._watchers.get(name, ()):
                event.set()

    def _read(
        self, name: TrainingJobName, after: int
    ) -> tuple[list[tuple[int, pb.WatchTrainingJobResponse]], bool, bool]:
        """Return the next events, whether there are more, and whether the job has ended."""
        with self._engine.begin() as connection:
            job = connection.execute(
                select(TRAINING_JOB.c.id, TRAINING_JOB.c.state).where(
                    TRAINING_JOB.c.name == str(name)
                )
            ).one_or_none()
            if job is None:
                raise TrainingJobNotFoundError(name)
            rows = connection.execute(
                select(JOB_EVENT.c.id, JOB_EVENT.c.message)
                .where(JOB_EVENT.c.job_id == job.id, JOB_EVENT.c.id > after)
                .order_by(JOB_EVENT.c.id)
                .limit(_BATCH)
            ).all()
        events = [(row.id, pb.WatchTrainingJobResponse.FromString(row.message)) for row in rows]
        return events, len(rows) == _BATCH, is_final(job.state)


def _append(
    connection: Connection, job_id: int, subject: str, event: pb.WatchTrainingJobResponse
) -> None:
    connection.execute(
        insert(JOB_EVENT).values(job_id=job_id, subject=subject, message=event.SerializeToString())
    )
