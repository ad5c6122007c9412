"""How many RPCs ended how, and how long they took: plain numbers, read at every scrape.

Written on the event loop only, so without locks: a call costs a microsecond. A reader in another
thread may see one call half.
"""

import time
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
"""Upper bounds of the buckets, in seconds; one more bucket has none."""

_LABELS: Final = (*map(str, BOUNDS_S), "+Inf")


class MethodCalls:
    """The calls of one method that ended. Use `calls_of`."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        """How many ended with each status code, by its name."""

        self._buckets = [0] * (len(BOUNDS_S) + 1)
        self._total_s = 0.0

    def end(self, code: str, start: float) -> None:
        """Count a call that began at `start`, by `time.perf_counter`."""
        seconds = time.perf_counter() - start
        self._buckets[bisect_left(BOUNDS_S, seconds)] += 1
        self._total_s += seconds
        self.codes[code] = self.codes.get(code, 0) + 1

    def add_to(self, family: HistogramMetricFamily, method: str) -> None:
        """Add how long the calls took."""
        counted = zip(_LABELS, map(float, accumulate(self._buckets)), strict=True)
        family.add_metric([method], list(counted), self._total_s)


class _Calls:
    """Of every method that was called, or may be."""

    def __init__(self) -> None:
        self.methods: dict[str, MethodCalls] = {}

    def collect(self) -> Iterator[Metric]:
        handled = CounterMetricFamily(
            "servery_grpc_requests", "RPCs ended", labels=["method", "code"]
        )
        durations = HistogramMetricFamily(
            "servery_grpc_request_duration_seconds",
            "Time from the first byte of an RPC to its status",
            labels=["method"],
        )
        for method, calls in list(self.methods.items()):
            for code, count in list(calls.codes.items()):
                handled.add_metric([method, code], count)
            calls.add_to(durations, method)
        yield handled
        yield durations


_CALLS: Final = _Calls()
REGISTRY.register(_CALLS)


def calls_of(method: str) -> MethodCalls:
    """Return where the calls of `method`, such as `/package.Service/Method`, are counted."""
    return _CALLS.methods.setdefault(method, MethodCalls())
