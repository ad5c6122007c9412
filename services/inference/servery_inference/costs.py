"""What a run of one model takes, learned from its runs: the least, and what is to be expected.

Decisions made on the least err towards trying: it is quick to believe in speed and slow to believe
in slowness. Whatever was not measured for long counts for less and less.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

SHORT_S: Final = 0.001
"""Runs below this are cheaper than a hand-over to another thread."""

_DOWN: Final = 0.5
_UP: Final = 1.1
_HALF_LIFE_S: Final = 10.0
_GAIN: Final = 0.9
_NEWS: Final = 0.2
_OUTLIER: Final = 3.0


@dataclass(slots=True)
class _Rate:
    """Seconds for each element, and when that was measured."""

    least: float
    mean: float
    measured: float


class Costs:
    """Seconds by size, in buckets that double. For one event loop.

    A size is the number of input elements, and of bytes where they are texts.

    Args:
        inline_size: Up to which size runs are known to take less than `SHORT_S`.
    """

    def __init__(self, inline_size: int) -> None:
        self._inline_size = inline_size
        self._rates: dict[int, _Rate] = {}

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
        rate, now = seconds / max(size, 1), time.monotonic()
        known = self._rates.get(bucket)
        if known is None:
            self._rates[bucket] = _Rate(rate, rate, now)
            return
        # One run that was interrupted must say little, however long it was.
        least, mean = known.least, known.mean
        known.least = least + (rate - least) * _DOWN if rate < least else min(rate, least * _UP)
        known.mean = mean + (min(rate, mean * _OUTLIER) - mean) * _NEWS
        known.measured = now

    def distrust(self) -> None:
        """Take no run for short from now on: its speed depends on more than its size."""
        self._inline_size = -1

    def is_short(self, size: int) -> bool:
        """Tell whether a run may happen on the event loop."""
        if self._inline_size < 0:
            return False
        known = self._rates.get(size.bit_length())
        return size <= self._inline_size if known is None else known.least * size < SHORT_S

    def was_below(self, size: int, seconds: float) -> bool:
        """Tell whether a run took less than `seconds` when runs of `size` were last measured."""
        known = self._rates.get(size.bit_length())
        return known is not None and known.least * size < seconds

    def estimate(self, size: int) -> float:
        """Return how many seconds a run takes at least; 0 as long as nothing is known."""
        known, size = self._nearest(size)
        return known.least * size * _trust(known.measured) if known else 0.0

    def expected(self, size: int) -> float:
        """Return how many seconds a run takes; 0 as long as nothing is known."""
        known, size = self._nearest(size)
        return known.mean * size * _trust(known.measured) if known else 0.0

    def _nearest(self, size: int) -> tuple[_Rate | None, int]:
        """What is known about runs of `size`, or else of the size returned, which take no more."""
        bucket = size.bit_length()
        known = self._rates.get(bucket)
        if known is not None:
            return known, size
        nearest = max((other for other in self._rates if other < bucket), default=None)
        if nearest is None:
            return None, size
        return self._rates[nearest], 1 << (nearest - 1) if nearest else 1

    def share(self, size: int) -> float:
        """Return how many seconds inputs of `size` add, in the best batch."""
        best = min(self._rates.values(), key=lambda rate: rate.mean, default=None)
        return best.mean * size * _trust(best.measured) if best else 0.0

    def joining_pays(self, alone: int, together: int) -> bool:
        """Tell whether a batch of size `together` costs less for each element than `alone` does.

        True where it was not measured yet.
        """
        one = self._rates.get(alone.bit_length())
        many = self._rates.get(together.bit_length())
        if one is None or many is None:
            return True
        return one is many or many.least < one.least * _GAIN


def _trust(measured: float) -> float:
    age = time.monotonic() - measured
    return 1.0 if age <= _HALF_LIFE_S else 0.5 ** (age / _HALF_LIFE_S - 1)
