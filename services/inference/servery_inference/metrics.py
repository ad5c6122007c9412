"""What each loaded version has done, under the metric names that dashboards of Triton read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from servery_inference.repository import Repository
from servery_inference.statistics import ModelStatistics

_NS_PER_US: Final = 1000

_COUNTERS: Final[tuple[tuple[str, str, Callable[[ModelStatistics], int]], ...]] = (
    ("nv_inference_request_success", "Requests answered", lambda s: s.success.count),
    ("nv_inference_request_failure", "Requests refused or failed", lambda s: s.fail.count),
    ("nv_inference_count", "Rows that were run", lambda s: s.inference_count),
    ("nv_inference_exec_count", "Runs of the model", lambda s: s.execution_count),
    (
        "nv_inference_request_duration_us",
        "Time from arrival to answer, in microseconds",
        lambda s: s.success.ns // _NS_PER_US,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Time inside the model, in microseconds",
        lambda s: s.compute_infer.ns // _NS_PER_US,
    ),
)


class RepositoryCollector:
    """Reads the statistics of what is loaded at every scrape, so that the series end with it."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def collect(self) -> Iterator[Metric]:
        """Yield one family per counter."""
        servables = self._repository.servables()
        for name, text, value in _COUNTERS:
            # Declared as a counter, prometheus_client would add `_total` to the name.
            metric = Metric(name, text, "unknown")
            for servable in servables:
                labels = {"model": servable.model, "version": str(servable.version)}
                metric.add_sample(name, labels, value(servable.statistics))
            yield metric


@contextmanager
def exported(repository: Repository, registry: CollectorRegistry) -> Iterator[None]:
    """Export the metrics of `repository` for the length of the block."""
    collector = RepositoryCollector(repository)
    registry.register(collector)
    try:
        yield
    finally:
        registry.unregister(collector)
