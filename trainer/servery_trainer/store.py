"""Training jobs in the database: the queue, and what becomes of each.

Each method is one transaction. All block; any thread may call them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from sqlalchemy import Engine, select

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.database import reads
from servery_rpc.errors import FieldInvalidError
from servery_rpc.names import TrainingJobName
from servery_rpc.pages import Page
from servery_trainer import queue_rows
from servery_trainer.database import TRAINING_JOB
from servery_trainer.fair_share import Running, next_job
from servery_trainer.idempotency import CreateRequest, first_answer, remember
from servery_trainer.job_rows import StoredJob, insert_job, named_job, stored_job, write_job
from servery_trainer.jobs import (
    CANCELLED,
    FAILED,
    MAX_STARTS,
    PUBLISHING,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    Crashed,
    Outcome,
    TrainingJobEndedError,
    crash,
    is_final,
    move,
    visible,
)
from servery_trainer.progress import append_progress, append_state
from servery_trainer.resources import Resources
from servery_trainer.terms import Capacity, Terms, retry_s


class JobStore:
    """The jobs of all tenants.

    Args:
        engine: The database.
        capacity: What all jobs together may use.
        changed: Called with the name of a job after each commit that added to its events.
        moved: Called after each commit that may let another job start.
    """

    def __init__(
        self,
        engine: Engine,
        capacity: Capacity,
        changed: Callable[[str], None],
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._reads = reads(engine)
        self._capacity = capacity
        self._changed = changed
        self._moved = moved

    def find(self, request: CreateRequest, now: datetime) -> pb.TrainingJob | None:
        """Return the first answer to `request`, if it came before.

        Raises:
            RequestIdReusedError: Another request came with its id.
        """
        with self._reads.begin() as connection:
            return first_answer(connection, request, now)

    def create(
        self, job: pb.TrainingJob, request: CreateRequest | None, now: datetime
    ) -> pb.TrainingJob:
        """Queue a job that `queued` made, or return the first answer to `request`.

        Raises:
            RequestIdReusedError: Another request came with its id.
        """
        with self._engine.begin() as connection:
            if request and (earlier := first_answer(connection, request, now)):
                return earlier
            job_id = insert_job(connection, job, now)
            if request:
                remember(connection, request, job_id, now)
        self.announce(job.name)
        return job

    def announce(self, name: str) -> None:
        """Tell of a job that `insert_job` added."""
        self._changed(name)
        self._moved()

    def get(self, name: TrainingJobName) -> pb.TrainingJob:
        """Return the job as callers see it.

        Raises:
            TrainingJobNotFoundError: There is none.
        """
        with self._reads.begin() as connection:
            return visible(named_job(connection, name).job)

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
                if stored.cancel_requested:
                    move(stored.job, CANCELLED, now)
                elif stored.job.attempt < MAX_STARTS:
                    move(stored.job, QUEUED, now)
                else:
                    message = f"the trainer stopped in each of {MAX_STARTS} attempts at this job"
                    stored.job.error.CopyFrom(crash("trainer stopped", message))
                    move(stored.job, FAILED, now)

    def publishing(self) -> Sequence[TrainingJobName]:
        """Return the jobs that are PUBLISHING."""
        return self._names(PUBLISHING)

    def get_publishing(self, name: TrainingJobName) -> pb.TrainingJob | None:
        """Return a job with the result of its process; None if it is not PUBLISHING any more."""
        with self._reads.begin() as connection:
            job = named_job(connection, name).job
        return job if job.state == PUBLISHING else None

    def cancel_requested(self, name: TrainingJobName) -> bool:
        """Tell whether a running job was asked to stop."""
        with self._reads.begin() as connection:
            return named_job(connection, name).cancel_requested

    def claim(self, now: datetime) -> pb.TrainingJob | None:
        """Take the job that starts now, see `fair_share`: it is RUNNING from here on."""
        now_s = now.timestamp()
        with self._engine.begin() as connection:
            chosen = queue_rows.without_process(connection, now_s)
            if chosen is None:
                job = next_job(
                    queue_rows.waiting(connection, now_s),
                    queue_rows.running(connection),
                    queue_rows.usage(connection),
                    self._capacity,
                    now_s,
                )
                if job is None:
                    return None
                chosen = job.id
            stored = stored_job(connection, TRAINING_JOB.c.id == chosen)
            move(stored.job, RUNNING, now)
            stored.run_since_s = now_s
            write_job(connection, stored)
            append_state(connection, stored.id, stored.job)
        self.announce(stored.job.name)
        return stored.job

    def next_due_s(self, now: datetime) -> float | None:
        """Return in how many seconds a job may try again that has to wait for it."""
        with self._reads.begin() as connection:
            due_s = queue_rows.next_due_s(connection, now.timestamp())
        return None if due_s is None else due_s - now.timestamp()

    def record(self, name: TrainingJobName, progress: Sequence[pb.Progress]) -> None:
        """Log what the process of a running job does."""
        with self._engine.begin() as connection:
            stored = named_job(connection, name)
            for one in progress:
                append_progress(connection, stored.id, one)
            stored.job.progress.CopyFrom(progress[-1])
            write_job(connection, stored)
        self._changed(str(name))

    def end_run(self, name: TrainingJobName, outcome: Outcome, now: datetime) -> pb.TrainingJob:
        """Leave RUNNING: for CANCELLED if that was asked, else as `outcome` says."""
        with self._change(name, run_ended=now) as stored:
            job = stored.job
            if isinstance(outcome, Crashed):
                stored.crashes += 1
            if stored.cancel_requested:
                move(job, CANCELLED, now)
            elif isinstance(outcome, Crashed) and stored.crashes < job.max_attempts:
                stored.not_before_s = now.timestamp() + retry_s(stored.crashes)
                move(job, QUEUED, now)
            elif isinstance(outcome, pb.TrainingResult):
                job.result.CopyFrom(outcome)
                move(job, SUCCEEDED if job.without_publication else PUBLISHING, now)
            else:
                job.error.CopyFrom(outcome.error if isinstance(outcome, Crashed) else outcome)
                move(job, FAILED, now)
        return job

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
        """Leave PUBLISHING: for SUCCEEDED if the registry has the version, else for FAILED.

        What went wrong after it had the version is a warning. CANCELLED stays.
        """
        with self._change(name) as stored:
            job = stored.job
            if job.state != PUBLISHING:
                return
            if error is None:
                move(job, SUCCEEDED, now)
            elif job.result.version:
                job.warnings.append(error)
                move(job, SUCCEEDED, now)
            else:
                job.error.CopyFrom(error)
                move(job, FAILED, now)

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

    def _names(self, state: int) -> Sequence[TrainingJobName]:
        """The jobs in `state`, the oldest first."""
        with self._reads.begin() as connection:
            names = connection.execute(
                select(TRAINING_JOB.c.name)
                .where(TRAINING_JOB.c.state == state)
                .order_by(TRAINING_JOB.c.id)
            ).scalars()
            return [TrainingJobName.parse(name) for name in names]

    @contextmanager
    def _change(
        self, name: TrainingJobName, run_ended: datetime | None = None
    ) -> Iterator[StoredJob]:
        """Change a job; with `run_ended`, its tenant answers for what its process used."""
        with self._engine.begin() as connection:
            stored = named_job(connection, name)
            before = stored.job.state
            yield stored
            write_job(connection, stored)
            if stored.job.state != before:
                append_state(connection, stored.id, stored.job)
            if run_ended:
                used = Resources.of(stored.job.resources)
                run = Running(name.tenant, used, stored.run_since_s)
                queue_rows.charge(connection, run, self._capacity.machine, run_ended.timestamp())
        if stored.job.state != before:
            self.announce(stored.job.name)


def queued(name: str, spec: pb.TrainingSpec, terms: Terms, now: datetime) -> pb.TrainingJob:
    """Return a new job; without a name if it is only to be shown."""
    job = pb.TrainingJob(name=name, spec=spec, state=QUEUED)
    terms.apply(job)
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
