"""How long one run of a graph takes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servery_trainer.parity import Graph

BATCH_SIZES: Final = (1, 8, 32, 128)

_WARM_UP_RUNS: Final = 5
_MIN_RUNS: Final = 20
_MAX_RUNS: Final = 200
_RUNS_PER_TURN: Final = 5
_BUDGET_S: Final = 0.25
"""For each graph and batch size; slow graphs are run `_MIN_RUNS` times all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Time of one run, in microseconds of wall time."""

    batch_size: int
    runs: int
    min_us: float
    """Of the run that the rest of the machine disturbed least: what graphs are compared by."""
    median_us: float
    p95_us: float


def measure(
    graphs: Sequence[Graph], inputs: Mapping[str, NDArray[Any]]
) -> list[tuple[Latency, ...]]:
    """Time each graph at each of `BATCH_SIZES`, on real rows repeated as often as needed.

    The graphs take turns, so that what else the machine does slows all of them alike.
    """
    by_size = [_measure(graphs, inputs, size) for size in BATCH_SIZES]
    return list(zip(*by_size, strict=True))


def _measure(
    graphs: Sequence[Graph], inputs: Mapping[str, NDArray[Any]], size: int
) -> list[Latency]:
    batch = {
        name: values[np.resize(np.arange(len(values)), size)] for name, values in inputs.items()
    }
    for graph in graphs:
        for _ in range(_WARM_UP_RUNS):
            graph.run(batch)
    times: list[list[int]] = [[] for _ in graphs]
    end = time.perf_counter_ns() + int(_BUDGET_S * 1e9 * len(graphs))
    while len(times[0]) < _MIN_RUNS or (len(times[0]) < _MAX_RUNS and time.perf_counter_ns() < end):
        for graph, own in zip(graphs, times, strict=True):
            graph.run(batch)  # brings its weights back into the caches
            for _ in range(_RUNS_PER_TURN):
                began = time.perf_counter_ns()
                graph.run(batch)
                own.append(time.perf_counter_ns() - began)
    latencies = []
    for own in times:
        least, median, p95 = np.percentile(own, [0, 50, 95]) / 1000
        latencies.append(
            Latency(
                batch_size=size,
                runs=len(own),
                min_us=float(least),
                median_us=float(median),
                p95_us=float(p95),
            )
        )
    return latencies
