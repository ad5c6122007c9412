"""The metrics of several processes, as if they were one's."""

import asyncio
import contextlib
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

_Series: TypeAlias = tuple[str, str, tuple[tuple[str, str], ...]]
"""The family, the sample, and its labels."""

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
        sums: _Values = {}
        for family in families.values():
            for name, labels, value, *_ in family.samples:
                sums[_series(family.name, name, labels)] = value
            family.samples = []
        counted: dict[int, _Values] = {}
        for pid, rendered in snapshots.items():
            if rendered is None:
                continue
            counted[pid] = {}
            for family_name, kind, text, samples in json.loads(rendered):
                families.setdefault(family_name, Metric(family_name, text, kind))
                for name, labels, value in samples:
                    series = _series(family_name, name, labels)
                    if kind != "gauge":
                        counted[pid][series] = value
                    elif family_name in _ADDED_GAUGES:
                        sums[series] = sums.get(series, 0.0) + value
                    else:
                        sums.setdefault(series, value)
        for values in self._counted(counted, silent=snapshots.keys() - counted.keys()):
            for series, value in values.items():
                sums[series] = sums.get(series, 0.0) + value
        for (family_name, name, pairs), value in sums.items():
            families[family_name].add_sample(name, dict(pairs), value)
        return list(families.values())

    def _counted(self, counted: Mapping[int, _Values], silent: Set[int]) -> list[_Values]:
        """What is to be added up: of workers that answer, that do not just now, and that ended."""
        for pid in self._last.keys() - counted.keys() - silent:
            for series, value in self._last.pop(pid).items():
                self._ended[series] = self._ended.get(series, 0.0) + value
        self._last |= counted
        alive = {series for values in self._last.values() for series in values}
        self._ended = {series: v for series, v in self._ended.items() if series in alive}
        return [*self._last.values(), self._ended]


async def _snapshots(supervisor: Supervisor) -> dict[int, bytes | None]:
    """By process; None for one that does not answer."""
    found: dict[int, bytes | None] = {}

    async def ask(worker: WorkerProcess) -> None:
        with contextlib.suppress(PeerGoneError):
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    found[worker.pid] = (await worker.channel.call("metrics")).body
            except TimeoutError:
                found[worker.pid] = None

    await asyncio.gather(*(ask(worker) for worker in supervisor.workers))
    return found


def _series(family: str, name: str, labels: Mapping[str, Any]) -> _Series:
    return family, name, tuple(sorted(labels.items()))


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
