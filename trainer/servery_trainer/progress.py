"""The event log of each job: what `WatchTrainingJob` replays, then follows.

State changes stay for ever. Of progress that tells the same figures of the same epoch only the
newest stays, so the log of a job grows with its epochs and not with its steps, and a watcher who
falls behind skips what is stale.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final, Self

from sqlalchemy import Connection, select

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.database import JOB_EVENT, TRAINING_JOB
from servery_trainer.event_log import Logged
from servery_trainer.jobs import TrainingJobNotFoundError, is_final, visible

_INTERVAL_S: Final = 0.1
_STATE: Final = ""

JOBS: Final = Logged(
    TRAINING_JOB,
    JOB_EVENT,
    JOB_EVENT.c.job_id,
    pb.WatchTrainingJobResponse.FromString,
    is_final,
    TrainingJobNotFoundError,
)


def append_state(connection: Connection, job_id: int, job: pb.TrainingJob) -> None:
    """Log that `job` is in a new state."""
    event = pb.WatchTrainingJobResponse(training_job=visible(job))
    JOBS.append(connection, job_id, _STATE, event.SerializeToString())


def append_progress(connection: Connection, job_id: int, progress: pb.Progress) -> None:
    """Log `progress` in place of what it makes stale."""
    subject = ":".join(map(str, (progress.phase, progress.epoch, *sorted(progress.metrics))))[:200]
    event = pb.WatchTrainingJobResponse(progress=progress)
    JOBS.replace(connection, job_id, subject, event.SerializeToString())


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
