"""What is ahead of a request, and whether it can be answered in time all the same."""

from typing import Final

from servery_inference.batch import Batch
from servery_inference.costs import Costs
from servery_inference.queueing import Work, WorkQueue

CAUTION: Final = 1.25
"""Runs disturb each other: what is expected is planned with this much more time."""

_MAX_PUSHBACK_MS: Final = 60_000
_NOTICED_S: Final = 0.005
_NEWS: Final = 0.1
_MAX_LAG: Final = 4.0


class Backlog:
    """The runs of one model that wait and that are under way. For one event loop.

    Args:
        queue: What waits.
        costs: What it takes.
        slots: Runs at the same time.
    """

    def __init__(self, queue: WorkQueue, costs: Costs, slots: int) -> None:
        self._queue = queue
        self._costs = costs
        self._slots = slots
        self._ends: dict[Batch, float] = {}
        self._lag = 1.0

    def join(self, work: Work, now: float) -> None:
        """Remember what is ahead of a work that joins the queue, if nothing can come before it."""
        ahead_s = self._runs_s(work.level, now)
        work.ahead_s = ahead_s if work.level == 1 and ahead_s >= _NOTICED_S else 0.0

    def learn(self, work: Work, now: float) -> None:
        """Compare how long a work waited with the runs ahead of it: more than runs takes time."""
        if work.ahead_s > 0:
            lag = min((now - work.since) / work.ahead_s, _MAX_LAG)
            self._lag += (lag - self._lag) * _NEWS

    def begin(self, batch: Batch, now: float) -> None:
        """Count a run that begins."""
        self._ends[batch] = now + self._costs.expected(batch.size)

    def end(self, batch: Batch) -> None:
        """Count it no more."""
        self._ends.pop(batch, None)

    def ahead_s(self, level: int, now: float) -> float:
        """Return after how many seconds a new work of this level should run."""
        return self._runs_s(level, now) * self._lag

    def _runs_s(self, level: int, now: float) -> float:
        running_s = sum(max(end - now, 0.0) for end in self._ends.values())
        return (self._queue.ahead_s(level) + running_s) / self._slots

    def is_reachable(self, work: Work, now: float) -> bool:
        """Tell whether a new work should be done by its deadline.

        Where nothing is ahead of it, it is refused for certain only: to try harms nobody.
        """
        if work.deadline is None:
            return True
        left_s, ahead_s = work.deadline - now, self.ahead_s(work.level, now)
        if left_s <= 0 or self._costs.estimate(work.size) > left_s:
            return False
        return not ahead_s or (ahead_s + self._costs.expected(work.size)) * CAUTION <= left_s

    def pushback_ms(self, now: float) -> int:
        """Return after how many milliseconds there should be nothing ahead any more."""
        ahead_s = self.ahead_s(self._queue.num_levels, now)
        return min(max(int(ahead_s * 1000), 1), _MAX_PUSHBACK_MS)
