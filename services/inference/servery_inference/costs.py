"""What a run of one model takes, learned from its runs: a lower estimate for every size of input.

Decisions made on it err towards trying: it is quick to believe in speed, slow to believe in
slowness, and what was not measured for long counts for less and less.
"""

import time
from collections.abc import Iterable
from typing import Final, Self

SHORT_S: Final = 0.001
"""Runs below this are cheaper than a hand-over to another thread."""

_DOWN: Final = 0.5
_UP: Final = 1.1
_HALF_LIFE_S: Final = 10.0
_GAIN: Final = 0.9


class Costs:
    """Seconds by size, in buckets that double. For one event loop.

    A size is the number of input elements, and of bytes where they are texts.

    Args:
        inline_size: Up to which size runs are known to take less than `SHORT_S`.
    """

    def __init__(self, inline_size: int) -> None:
        self._inline_size = inline_size
        self._rates: dict[int, tuple[float, float]] = {}

    @classmethod
    def of(cls, inline_size: int, points: Iterable[tuple[int, float]]) -> Self:
        """Begin with `(size, seconds)` of runs that were measured."""
        costs = cls(inline_size)
        for size, seconds in points:
            costs.record(size, seconds)
        return costs

    def record(self, size: int, seconds: float) -> None:
        """Learn from one run."""
        bucket = size.bit_length()
        rate = seconds / max(size, 1)
        known = self._rates.get(bucket)
        if known is not None:
            old = known[0]
            # One run that was interrupted must say little, however long it was.
            rate = old + (rate - old) * _DOWN if rate < old else min(rate, old * _UP)
        self._rates[bucket] = rate, time.monotonic()

    def distrust(self) -> None:
        """Take no run for short from now on: its speed depends on more than its size."""
        self._inline_size = -1

    def is_short(self, size: int) -> bool:
        """Tell whether a run may happen on the event loop."""
        if self._inline_size < 0:
            return False
        known = self._rates.get(size.bit_length())
        return size <= self._inline_size if known is None else known[0] * size < SHORT_S

    def estimate(self, size: int) -> float:
        """Return how many seconds a run takes at least; 0 as long as nothing is known."""
        if not self._rates:
            return 0.0
        bucket = size.bit_length()
        known = self._rates.get(bucket)
        if known is None:
            below = [other for other in self._rates if other < bucket]
            if not below:
                return 0.0
            nearest = max(below)  # A larger run takes no less than the least of that bucket.
            known = self._rates[nearest]
            size = 1 << (nearest - 1) if nearest else 1
        return known[0] * size * _trust(known[1])

    def share(self, size: int) -> float:
        """Return how many seconds inputs of `size` add at least, in the best batch."""
        best = min(self._rates.values(), default=(0.0, 0.0))
        return best[0] * size * _trust(best[1])

    def joining_pays(self, alone: int, together: int) -> bool:
        """Tell whether a batch of size `together` costs less for each element than `alone` does.

        True where it was not measured yet.
        """
        one = self._rates.get(alone.bit_length())
        many = self._rates.get(together.bit_length())
        if one is None or many is None:
            return True
        return one is many or many[0] < one[0] * _GAIN


def _trust(measured: float) -> float:
    age = time.monotonic() - measured
    return 1.0 if age <= _HALF_LIFE_S else 0.5 ** (age / _HALF_LIFE_S - 1)
