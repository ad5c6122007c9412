"""The metrics of several processes, as if they were one's."""

import asyncio
import json
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from servery_inference.workers.channel import PeerGoneError
from servery_inference.workers.process import WorkerProcess
from servery_inference.workers.supervisor import Supervisor

_PATIENCE_S: Final = 5.0
_ADDED_GAUGES: Final = frozenset(
    {
        "nv_inference_pending_request_count",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
    }
)
"""Of other gauges one value holds for all: the parent's, or that of the first worker."""

_Series: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]
_Values: TypeAlias = dict[_Series, float]


def snapshot(registry: CollectorRegistry) -> bytes:
    """Render what a worker counts."""
    families = []
    for family in registry.collect():
        samples = [[sample.name, sample.labels, sample.value] for sample in family.samples]
        families.append([family.name, family.type, family.documentation, samples])
    return json.dumps(families).encode()


class MergedMetrics(Collector):
    """Adds what workers count to what this process does.

    What a worker had counted when it ended stays in the sums as long as others serve the same, for
    counters must not go back.

    Args:
        own: The metrics of this process.
    """

    def __init__(self, own: CollectorRegistry) -> None:
        self._own = own
        self._workers: tuple[Supervisor, asyncio.AbstractEventLoop] | None = None
        self._last: dict[int, _Values] = {}
        self._ended: _Values = {}

    @contextmanager
    def of(self, supervisor: Supervisor) -> Iterator[None]:
        """Count workers in for the length of the block."""
        self._workers = supervisor, asyncio.get_running_loop()
        try:
            yield
        finally:
            self._workers = None

    def collect(self) -> Iterator[Metric]:
        """Yield all families. Not for the event loop of the workers."""
        if self._workers is None:
            return iter(self._own.collect())
        supervisor, loop = self._workers
        asked = asyncio.run_coroutine_threadsafe(_snapshots(supervisor), loop)
        return iter(self._merged(asked.result(2 * _PATIENCE_S)))

    def _merged(self, snapshots: Mapping[int, bytes | None]) -> list[Metric]:
        families = {family.name: family for family in self._own.collect()}
        sums: dict[str, _Values] = {}
        for family in families.values():
            sums[family.name] = {}
            for sample in family.samples:
                sums[family.name][_series(sample.name, sample.labels)] = sample.value
        counted: dict[int, _Values] = {}
        for pid, rendered in snapshots.items():
            if rendered is None:
                continue
            counted[pid] = {}
            for name, kind, text, samples in json.loads(rendered):
                family = families.setdefault(name, Metric(name, text, kind))
                values = sums.setdefault(name, {})
                for sample, labels, value in samples:
                    series = _series(sample, labels)
                    if kind != "gauge":
                        counted[pid][series] = value
                    if kind != "gauge" or name in _ADDED_GAUGES:
                        values[series] = values.get(series, 0.0) + value
                    else:
                        values.setdefault(series, value)
        self._bury(self._last.keys() - snapshots.keys(), counted)
        for name, family in families.items():
            family.samples = []
            for series, value in sums[name].items():
                ended = self._ended.get(series, 0.0)
                family.add_sample(series[0], dict(series[1]), value + ended)
        return list(families.values())

    def _bury(self, ended: Set[int], counted: Mapping[int, _Values]) -> None:
        for pid in ended:
            for series, value in self._last.pop(pid).items():
                self._ended[series] = self._ended.get(series, 0.0) + value
        self._last |= counted
        alive = {series for values in counted.values() for series in values}
        self._ended = {series: v for series, v in self._ended.items() if series in alive}


async def _snapshots(supervisor: Supervisor) -> dict[int, bytes | None]:
    """By process; None for one that does not answer."""

    async def of(worker: WorkerProcess) -> tuple[int, bytes | None]:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return worker.pid, (await worker.channel.call("metrics")).body
        except (TimeoutError, PeerGoneError):
            return worker.pid, None

    return dict(await asyncio.gather(*(of(worker) for worker in supervisor.workers)))


def _series(name: str, labels: Mapping[str, Any]) -> _Series:
    return name, tuple(sorted(labels.items()))


class WorkerCounts(Collector):
    """How many workers serve, and how many were begun again."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def collect(self) -> Iterator[Metric]:
        """Yield both families."""
        serving = Metric("servery_inference_workers", "Worker processes that serve", "gauge")
        serving.add_sample(serving.name, {}, len(self._supervisor.serving))
        yield serving
        text = "Worker processes begun in the place of one that ended"
        restarts = Metric("servery_inference_worker_restarts", text, "counter")
        restarts.add_sample(f"{restarts.name}_total", {}, self._supervisor.num_restarts)
        yield restarts
