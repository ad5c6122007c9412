"""How long one run of a graph takes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servery_trainer.parity import Graph

BATCH_SIZES: Final = (1, 8, 32, 128)

_WARM_UP_RUNS: Final = 5
_MIN_RUNS: Final = 20
_MAX_RUNS: Final = 200
_BUDGET_S: Final = 0.25
"""For each batch size; slow graphs are run `_MIN_RUNS` times all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Time of one run, in microseconds of wall time."""

    batch_size: int
    runs: int
    median_us: float
    p95_us: float


def measure(graph: Graph, inputs: Mapping[str, NDArray[Any]]) -> tuple[Latency, ...]:
    """Time `graph` at each of `BATCH_SIZES`, on real rows repeated as often as needed."""
    return tuple(_measure(graph, inputs, size) for size in BATCH_SIZES)


def _measure(graph: Graph, inputs: Mapping[str, NDArray[Any]], size: int) -> Latency:
    batch = {
        name: values[np.resize(np.arange(len(values)), size)] for name, values in inputs.items()
    }
    for _ in range(_WARM_UP_RUNS):
        graph.run(batch)
    times: list[int] = []
    end = time.perf_counter_ns() + int(_BUDGET_S * 1e9)
    while len(times) < _MIN_RUNS or (len(times) < _MAX_RUNS and time.perf_counter_ns() < end):
        began = time.perf_counter_ns()
        graph.run(batch)
        times.append(time.perf_counter_ns() - began)
    median, p95 = np.percentile(times, [50, 95]) / 1000
    return Latency(batch_size=size, runs=len(times), median_us=float(median), p95_us=float(p95))
