"""Which job runs next: the rule alone, without a queue or a clock.

1. The tenant that uses least is next. What it uses is the part of the machine (of cores or memory,
   whichever is more) its running jobs hold, taken as if they went on for `AHEAD_S`, plus what it
   used before, of which half is forgotten each `HALF_LIFE_S`.
2. Of its jobs the most urgent one is next: the highest priority, with a point more for each minute
   it waits; of equal ones the oldest.
3. That job starts when there is room for it, or nothing else runs (a machine may have become
   smaller since the job was taken). None overtakes it, or a large one would never run.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from servery_trainer.resources import Resources
from servery_trainer.terms import Capacity

HALF_LIFE_S: Final = 3600.0
AHEAD_S: Final = 600.0
_POINT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that could start."""

    id: int
    """Grows with the order of creation."""
    tenant: str
    resources: Resources
    priority: int
    since_s: float
    """Unix time at which it was created."""


@dataclass(frozen=True, slots=True)
class Running:
    """A job that holds a part of the machine."""

    tenant: str
    resources: Resources
    since_s: float
    """Unix time at which this attempt began."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant used: seconds of the whole machine, at a Unix time."""

    machine_s: float
    at_s: float

    def at(self, now_s: float) -> float:
        """Return what still counts."""
        half_lives = max(0.0, now_s - self.at_s) / HALF_LIFE_S
        return self.machine_s * math.exp2(-half_lives)

    def after(self, run: Running, now_s: float, machine: Resources) -> "Usage":
        """Return it with a run that ends now."""
        used_s = max(0.0, now_s - run.since_s) * run.resources.fraction(machine)
        return Usage(self.at(now_s) + used_s, now_s)


NO_USAGE: Final = Usage(0.0, 0.0)


def next_job(
    waiting: Iterable[Waiting],
    running: Sequence[Running],
    usage: Mapping[str, Usage],
    capacity: Capacity,
    now_s: float,
) -> Waiting | None:
    """Return the job that starts now; None if none waits or the next one finds no room."""
    by_tenant: dict[str, list[Waiting]] = {}
    for job in waiting:
        by_tenant.setdefault(job.tenant, []).append(job)
    if not by_tenant:
        return None

    def used_s(tenant: str) -> float:
        return usage.get(tenant, NO_USAGE).at(now_s) + sum(
            (now_s - run.since_s + AHEAD_S) * run.resources.fraction(capacity.machine)
            for run in running
            if run.tenant == tenant
        )

    def urgency(job: Waiting) -> tuple[float, int]:
        return job.priority + (now_s - job.since_s) / _POINT_S, -job.id

    best = [max(jobs, key=urgency) for jobs in by_tenant.values()]
    job = min(best, key=lambda job: (used_s(job.tenant), job.id))
    taken = sum((run.resources for run in running), start=job.resources)
    room = len(running) < capacity.parallel_jobs and taken.within(capacity.machine)
    return job if room or not running else None
