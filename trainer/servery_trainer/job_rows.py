"""One training job in a transaction: read it, change it, write it back."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, insert, select, update
from sqlalchemy.exc import NoResultFound

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.names import TrainingJobName
from servery_trainer.database import TRAINING_JOB
from servery_trainer.jobs import TrainingJobNotFoundError
from servery_trainer.progress import append_state


@dataclass(slots=True)
class StoredJob:
    """A job inside a transaction: what is changed here is written when it ends."""

    id: int
    job: pb.TrainingJob
    cancel_requested: bool
    committing: bool
    not_before_s: float
    run_since_s: float
    crashes: int


def insert_job(connection: Connection, job: pb.TrainingJob, now: datetime) -> int:
    """Add a queued job, and return its row id; once committed, `JobStore.announce` it."""
    job_id: int = connection.execute(
        insert(TRAINING_JOB)
        .values(
            name=job.name,
            tenant=TrainingJobName.parse(job.name).tenant,
            state=job.state,
            cancel_requested=False,
            committing=False,
            message=job.SerializeToString(),
            priority=job.priority,
            cores=job.resources.cores,
            memory_bytes=job.resources.memory_bytes,
            create_time_s=now.timestamp(),
            not_before_s=0.0,
            run_since_s=0.0,
            crashes=0,
        )
        .returning(TRAINING_JOB.c.id)
    ).scalar_one()
    append_state(connection, job_id, job)
    return job_id


def named_job(connection: Connection, name: TrainingJobName) -> StoredJob:
    """Read the job of this name.

    Raises:
        TrainingJobNotFoundError: There is none.
    """
    try:
        return stored_job(connection, TRAINING_JOB.c.name == str(name))
    except NoResultFound:
        raise TrainingJobNotFoundError(name) from None


def stored_job(connection: Connection, which: ColumnElement[bool]) -> StoredJob:
    """Read the one job that a condition holds for.

    Raises:
        NoResultFound: There is none.
    """
    row = connection.execute(select(TRAINING_JOB).where(which)).one()
    return StoredJob(
        row.id,
        pb.TrainingJob.FromString(row.message),
        row.cancel_requested,
        row.committing,
        row.not_before_s,
        row.run_since_s,
        row.crashes,
    )


def write_job(connection: Connection, stored: StoredJob) -> None:
    """Write a job back."""
    connection.execute(
        update(TRAINING_JOB)
        .where(TRAINING_JOB.c.id == stored.id)
        .values(
            state=stored.job.state,
            cancel_requested=stored.cancel_requested,
            committing=stored.committing,
            message=stored.job.SerializeToString(),
            not_before_s=stored.not_before_s,
            run_since_s=stored.run_since_s,
            crashes=stored.crashes,
        )
    )
