"""What each loaded version has done, under the metric names that dashboards of Triton read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from servery_inference.gpu_metrics import GpuCollector
from servery_inference.host_metrics import HostCollector
from servery_inference.repository import Repository
from servery_inference.servable import Servable
from servery_inference.statistics import BOUNDS_S, Histogram, ModelStatistics

_NS_PER_US: Final = 1000
_NS_PER_S: Final = 1_000_000_000

_Value = Callable[[ModelStatistics], int]

_VALUES: Final[tuple[tuple[str, str, str, _Value], ...]] = (
    ("nv_inference_request_success", "unknown", "Requests answered", lambda s: s.success.count),
    ("nv_inference_count", "unknown", "Rows that were run", lambda s: s.inference_count),
    ("nv_inference_exec_count", "unknown", "Runs of the model", lambda s: s.execution_count),
    (
        "nv_inference_request_duration_us",
        "unknown",
        "Time from arrival to answer, in microseconds",
        lambda s: s.success.ns // _NS_PER_US,
    ),
    (
        "nv_inference_queue_duration_us",
        "unknown",
        "Time in the queue, in microseconds",
        lambda s: s.queue.ns // _NS_PER_US,
    ),
    (
        "nv_inference_compute_input_duration_us",
        "unknown",
        "Time to gather inputs, in microseconds",
        lambda s: s.compute_input.ns // _NS_PER_US,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "unknown",
        "Time inside the model, in microseconds",
        lambda s: s.compute_infer.ns // _NS_PER_US,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "unknown",
        "Time to split outputs, in microseconds",
        lambda s: s.compute_output.ns // _NS_PER_US,
    ),
    (
        "nv_inference_pending_request_count",
        "gauge",
        "Requests that wait for their run",
        lambda s: s.pending,
    ),
    (
        "nv_cache_num_hits_per_model",
        "unknown",
        "Requests answered from the response cache",
        lambda s: s.cache_hit.count,
    ),
    (
        "nv_cache_num_misses_per_model",
        "unknown",
        "Requests that the response cache could not answer",
        lambda s: s.cache_miss.count,
    ),
    (
        "nv_cache_hit_duration_per_model",
        "unknown",
        "Time of answers from the response cache, in microseconds",
        lambda s: s.cache_hit.ns // _NS_PER_US,
    ),
    (
        "nv_cache_miss_duration_per_model",
        "unknown",
        "Time of lookups and insertions of the response cache, in microseconds",
        lambda s: s.cache_miss.ns // _NS_PER_US,
    ),
)
"""Name, type, text and value. Declared as counters, prometheus_client would add `_total`."""

_HISTOGRAMS: Final[tuple[tuple[str, str, Callable[[ModelStatistics], Histogram]], ...]] = (
    (
        "servery_inference_request_seconds",
        "Time from arrival to answer",
        lambda s: s.request_histogram,
    ),
    ("servery_inference_queue_seconds", "Time in the queue", lambda s: s.queue_histogram),
    (
        "servery_inference_compute_seconds",
        "Time inside the model",
        lambda s: s.compute_histogram,
    ),
)
_BOUNDS: Final = (*(str(bound) for bound in BOUNDS_S), "+Inf")


class RepositoryCollector:
    """Reads the statistics of what is loaded at every scrape, so that the series end with it."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        servables = self._repository.servables()
        for name, kind, text, value in _VALUES:
            metric = Metric(name, text, kind)
            for servable in servables:
                metric.add_sample(name, _labels(servable), value(servable.statistics))
            yield metric
        yield _failures(servables)
        loads = Metric("nv_model_load_duration_secs", "Time of the load, in seconds", "gauge")
        for servable in servables:
            loads.add_sample(loads.name, _labels(servable), servable.load_s)
        yield loads
        for name, text, histogram in _HISTOGRAMS:
            family = HistogramMetricFamily(name, text, labels=("model", "version"))
            for servable in servables:
                counted = histogram(servable.statistics)
                family.add_metric(
                    (servable.model, str(servable.version)),
                    list(zip(_BOUNDS, map(float, counted.cumulative()), strict=True)),
                    counted.total_ns / _NS_PER_S,
                )
            yield family


@contextmanager
def exported(registry: CollectorRegistry, *collectors: Collector) -> Iterator[None]:
    """Export what `collectors` give for the length of the block."""
    for collector in collectors:
        registry.register(collector)
    try:
        yield
    finally:
        for collector in collectors:
            registry.unregister(collector)


@contextmanager
def machine_collectors() -> Iterator[Sequence[Collector]]:
    """Give what tells about the machine, for the length of the block."""
    with GpuCollector.open() as gpus:
        yield [HostCollector(), *([gpus] if gpus else [])]


def _failures(servables: Sequence[Servable]) -> Metric:
    name = "nv_inference_request_failure"
    metric = Metric(name, "Requests refused or failed", "unknown")
    for servable in servables:
        for failure, count in servable.statistics.failures.items():
            metric.add_sample(name, {**_labels(servable), "reason": failure.value}, count)
    return metric


def _labels(servable: Servable) -> dict[str, str]:
    return {"model": servable.model, "version": str(servable.version)}
