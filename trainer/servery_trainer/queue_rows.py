"""What the queue is ordered by, in the database: who waits, who runs, who used what."""

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import Connection, delete, func, insert, select

from servery_trainer.database import TENANT_USAGE, TRAINING_JOB
from servery_trainer.fair_share import NO_USAGE, Running, Usage, Waiting
from servery_trainer.jobs import QUEUED, RUNNING
from servery_trainer.resources import Resources

_JOB: Final = TRAINING_JOB.c
_DUE: Final = _JOB.not_before_s


def waiting(connection: Connection, now_s: float) -> Sequence[Waiting]:
    """Return the jobs that could start now, and need room for it."""
    rows = connection.execute(
        select(
            _JOB.id,
            _JOB.tenant,
            _JOB.cores,
            _JOB.memory_bytes,
            _JOB.priority,
            _JOB.create_time_s,
        ).where(_JOB.state == QUEUED, _JOB.cores > 0, now_s >= _DUE)
    ).all()
    return [
        Waiting(
            row.id,
            row.tenant,
            Resources(row.cores, row.memory_bytes),
            row.priority,
            row.create_time_s,
        )
        for row in rows
    ]


def without_process(connection: Connection, now_s: float) -> int | None:
    """Return a job that only publishes, so it needs no room."""
    found: int | None = connection.execute(
        select(func.min(_JOB.id)).where(_JOB.state == QUEUED, _JOB.cores == 0, now_s >= _DUE)
    ).scalar()
    return found


def running(connection: Connection) -> Sequence[Running]:
    """Return what holds a part of the machine."""
    rows = connection.execute(
        select(_JOB.tenant, _JOB.cores, _JOB.memory_bytes, _JOB.run_since_s).where(
            _JOB.state == RUNNING, _JOB.cores > 0
        )
    ).all()
    return [
        Running(row.tenant, Resources(row.cores, row.memory_bytes), row.run_since_s) for row in rows
    ]


def next_due_s(connection: Connection, now_s: float) -> float | None:
    """Return the Unix time at which the next job may try again; None if none waits for that."""
    due: float | None = connection.execute(
        select(func.min(_DUE)).where(_JOB.state == QUEUED, now_s < _DUE)
    ).scalar()
    return due


def usage(connection: Connection) -> Mapping[str, Usage]:
    """Return what each tenant used."""
    rows = connection.execute(select(TENANT_USAGE)).all()
    return {row.tenant: Usage(row.machine_s, row.at_s) for row in rows}


def charge(connection: Connection, run: Running, machine: Resources, now_s: float) -> None:
    """Note that a run ended."""
    used = usage(connection).get(run.tenant, NO_USAGE).after(run, now_s, machine)
    connection.execute(delete(TENANT_USAGE).where(TENANT_USAGE.c.tenant == run.tenant))
    connection.execute(
        insert(TENANT_USAGE).values(tenant=run.tenant, machine_s=used.machine_s, at_s=used.at_s)
    )
