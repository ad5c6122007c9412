"""Which of the requests that wait run next: a pure decision, without the doing."""

from collections.abc import Iterable
from dataclasses import dataclass

from servery_inference.backlog import CAUTION
from servery_inference.batch_policy import BatchPolicy
from servery_inference.costs import Costs
from servery_inference.queueing import Work


@dataclass(frozen=True, slots=True)
class Choice:
    """A batch to run."""

    works: tuple[Work, ...]

    wait_s: float
    """How long to wait for more works before that, in seconds; 0 or less to run it at once."""

    @property
    def size(self) -> int:
        """Of all works together; see `costs`."""
        return sum(work.size for work in self.works)


def choose(
    waiting: Iterable[Work], policy: BatchPolicy, costs: Costs, now: float, *, joins: bool
) -> Choice:
    """Choose the works to run next.

    Args:
        waiting: At least one, in the order in which they are to be served.
        policy: What the config says.
        costs: What runs of each size take.
        now: By `time.monotonic`.
        joins: Whether works may share a run.
    """
    left = iter(waiting)
    works = [next(left)]
    rows, size = works[0].rows, works[0].size
    deadline = works[0].deadline
    preferred = 1 if rows in policy.preferred else 0
    is_closed = not joins or works[0].is_alone or rows >= policy.max_rows
    while not is_closed and (work := next(left, None)) is not None:
        if work.kind != works[0].kind or work.is_alone:
            is_closed = policy.is_ordered
            continue
        due = _sooner(deadline, work.deadline)
        late = due is not None and now + costs.expected(size + work.size) * CAUTION > due
        pays = policy.delay_s or costs.joining_pays(works[0].size, size + work.size)
        if rows + work.rows > policy.max_rows or late or not pays:
            is_closed = True
            break
        works.append(work)
        rows, size, deadline = rows + work.rows, size + work.size, due
        if rows in policy.preferred:
            preferred = len(works)
        is_closed = rows >= policy.max_rows
    if preferred:
        return Choice(tuple(works[:preferred]), 0.0)
    if is_closed or not policy.delay_s:
        return Choice(tuple(works), 0.0)
    until = min(work.since for work in works) + policy.delay_s
    if deadline is not None:
        until = min(until, deadline - costs.expected(size) * CAUTION)
    return Choice(tuple(works), until - now)


def _sooner(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)
