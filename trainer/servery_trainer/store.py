"""Training jobs in the database.

Each method is one transaction. All block; any thread may call them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, insert, select, update

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_rpc.names import TrainingJobName
from servery_rpc.pages import Page
from servery_trainer.database import TRAINING_JOB, reads
from servery_trainer.idempotency import CreateRequest, first_answer, remember
from servery_trainer.jobs import (
    CANCELLED,
    FAILED,
    PUBLISHING,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    Outcome,
    TrainingJobEndedError,
    TrainingJobNotFoundError,
    is_final,
    move,
    visible,
)
from servery_trainer.progress import append_progress, append_state


@dataclass(slots=True)
class _Stored:
    """A job inside a transaction: what is changed here is written when it ends."""

    id: int
    job: pb.TrainingJob
    cancel_requested: bool
    committing: bool


class JobStore:
    """The jobs of all tenants.

    Args:
        engine: The database.
        changed: Called with the name of a job after each commit that added to its events.
    """

    def __init__(self, engine: Engine, changed: Callable[[str], None]) -> None:
        self._engine = engine
        self._reads = reads(engine)
        self._changed = changed

    def find(self, request: CreateRequest, now: datetime) -> pb.TrainingJob | None:
        """Return the first answer to `request`, if it came before.

        Raises:
            RequestIdReusedError: Another request came with its id.
        """
        with self._reads.begin() as connection:
            return first_answer(connection, request, now)

    def create(
        self,
        name: TrainingJobName,
        spec: pb.TrainingSpec,
        request: CreateRequest | None,
        now: datetime,
    ) -> pb.TrainingJob:
        """Queue a job, or return the first answer to `request`.

        Raises:
            RequestIdReusedError: Another request came with its id.
        """
        job = queued(str(name), spec, now)
        with self._engine.begin() as connection:
            if request and (earlier := first_answer(connection, request, now)):
                return earlier
            job_id = connection.execute(
                insert(TRAINING_JOB)
                .values(
                    name=job.name,
                    tenant=name.tenant,
                    state=job.state,
                    cancel_requested=False,
                    committing=False,
                    message=job.SerializeToString(),
                )
                .returning(TRAINING_JOB.c.id)
            ).scalar_one()
            append_state(connection, job_id, job)
            if request:
                remember(connection, request, job_id, now)
        self._changed(job.name)
        return job

    def get(self, name: TrainingJobName) -> pb.TrainingJob:
        """Return the job as callers see it.

        Raises:
            TrainingJobNotFoundError: There is none.
        """
        with self._reads.begin() as connection:
            return visible(_read(connection, name).job)

    def list(self, tenant: str, page: Page) -> tuple[Sequence[pb.TrainingJob], str | None]:
        """Return one page of a tenant's jobs, the newest first, and the key of the next page."""
        query = select(TRAINING_JOB.c.id, TRAINING_JOB.c.message).where(
            TRAINING_JOB.c.tenant == tenant
        )
        if page.after is not None:
            query = query.where(TRAINING_JOB.c.id < page_key(page.after))
        with self._reads.begin() as connection:
            rows = connection.execute(
                query.order_by(TRAINING_JOB.c.id.desc()).limit(page.size + 1)
            ).all()
        jobs = [visible(pb.TrainingJob.FromString(row.message)) for row in rows[: page.size]]
        return jobs, str(rows[page.size - 1].id) if len(rows) > page.size else None

    def recover(self, now: datetime) -> None:
        """Queue again what ran when the trainer died; what was being cancelled is CANCELLED."""
        for name in self._names(RUNNING):
            with self._change(name) as stored:
                move(stored.job, CANCELLED if stored.cancel_requested else QUEUED, now)

    def publishing(self) -> Sequence[TrainingJobName]:
        """Return the jobs that are PUBLISHING."""
        return self._names(PUBLISHING)

    def get_publishing(self, name: TrainingJobName) -> pb.TrainingJob | None:
        """Return a job with the result of its process; None if it is not PUBLISHING any more."""
        with self._reads.begin() as connection:
            job = _read(connection, name).job
        return job if job.state == PUBLISHING else None

    def cancel_requested(self, name: TrainingJobName) -> bool:
        """Tell whether a running job was asked to stop."""
        with self._reads.begin() as connection:
            return _read(connection, name).cancel_requested

    def claim(self, now: datetime) -> pb.TrainingJob | None:
        """Take the oldest queued job: it is RUNNING from here on. None if there is none."""
        while names := self._names(QUEUED, limit=1):
            with self._change(names[0]) as stored:
                if stored.job.state == QUEUED:  # Else it was cancelled since.
                    move(stored.job, RUNNING, now)
                    return stored.job
        return None

    def record(self, name: TrainingJobName, progress: Sequence[pb.Progress]) -> None:
        """Log what the process of a running job does."""
        with self._engine.begin() as connection:
            stored = _read(connection, name)
            for one in progress:
                append_progress(connection, stored.id, one)
            stored.job.progress.CopyFrom(progress[-1])
            _write(connection, stored)
        self._changed(str(name))

    def end_run(self, name: TrainingJobName, outcome: Outcome, now: datetime) -> pb.TrainingJob:
        """Leave RUNNING: for CANCELLED if that was asked, else as `outcome` says."""
        with self._change(name) as stored:
            if stored.cancel_requested:
                move(stored.job, CANCELLED, now)
            elif isinstance(outcome, pb.JobError):
                stored.job.error.CopyFrom(outcome)
                move(stored.job, FAILED, now)
            else:
                stored.job.result.CopyFrom(outcome)
                move(stored.job, PUBLISHING, now)
        return stored.job

    def begin_commit(self, name: TrainingJobName) -> bool:
        """Forbid cancelling from here on; False if the job was cancelled before."""
        with self._change(name) as stored:
            stored.committing = stored.job.state == PUBLISHING
        return stored.committing

    def published(self, name: TrainingJobName, version: str) -> None:
        """Remember that the registry holds the version of a job that is still PUBLISHING."""
        with self._change(name) as stored:
            stored.job.result.version = version

    def end_publication(
        self, name: TrainingJobName, error: pb.JobError | None, now: datetime
    ) -> None:
        """Leave PUBLISHING: for FAILED with `error`, for SUCCEEDED without. CANCELLED stays."""
        with self._change(name) as stored:
            if stored.job.state != PUBLISHING:
                return
            if error is not None:
                stored.job.error.CopyFrom(error)
            move(stored.job, SUCCEEDED if error is None else FAILED, now)

    def cancel(self, name: TrainingJobName, now: datetime) -> pb.TrainingJob:
        """Cancel at once what no process works on; else note the request for `end_run`.

        Raises:
            TrainingJobNotFoundError: There is no such job.
            TrainingJobEndedError: It has ended, or the registry may already hold its version.
        """
        with self._change(name) as stored:
            if is_final(stored.job.state) or stored.committing:
                raise TrainingJobEndedError(stored.job)
            stored.cancel_requested = True
            if stored.job.state != RUNNING:
                move(stored.job, CANCELLED, now)
        return visible(stored.job)

    def _names(self, state: int, limit: int | None = None) -> Sequence[TrainingJobName]:
        """The jobs in `state`, the oldest first."""
        with self._reads.begin() as connection:
            names = connection.execute(
                select(TRAINING_JOB.c.name)
                .where(TRAINING_JOB.c.state == state)
                .order_by(TRAINING_JOB.c.id)
                .limit(limit)
            ).scalars()
            return [TrainingJobName.parse(name) for name in names]

    @contextmanager
    def _change(self, name: TrainingJobName) -> Iterator[_Stored]:
        with self._engine.begin() as connection:
            stored = _read(connection, name)
            before = stored.job.state
            yield stored
            _write(connection, stored)
            if stored.job.state != before:
                append_state(connection, stored.id, stored.job)
        if stored.job.state != before:
            self._changed(stored.job.name)


def queued(name: str, spec: pb.TrainingSpec, now: datetime) -> pb.TrainingJob:
    """Return a new job; without a name if it is only to be shown."""
    job = pb.TrainingJob(name=name, spec=spec, state=QUEUED)
    job.create_time.FromDatetime(now.astimezone(UTC))
    return job


def page_key(after: str) -> int:
    """Read the row id a page token holds.

    Raises:
        FieldInvalidError: It holds something else.
    """
    if not after.isdecimal() or len(after) > 18:
        raise FieldInvalidError("page_token", after, "be a next_page_token of this method")
    return int(after)


def _read(connection: Connection, name: TrainingJobName) -> _Stored:
    row = connection.execute(
        select(TRAINING_JOB).where(TRAINING_JOB.c.name == str(name)).with_for_update()
    ).one_or_none()
    if row is None:
        raise TrainingJobNotFoundError(name)
    job = pb.TrainingJob.FromString(row.message)
    return _Stored(row.id, job, row.cancel_requested, row.committing)


def _write(connection: Connection, stored: _Stored) -> None:
    connection.execute(
        update(TRAINING_JOB)
        .where(TRAINING_JOB.c.id == stored.id)
        .values(
            state=stored.job.state,
            cancel_requested=stored.cancel_requested,
            committing=stored.committing,
            message=stored.job.SerializeToString(),
        )
    )
