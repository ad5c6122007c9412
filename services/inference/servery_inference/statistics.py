"""What one version of a model has done since it was loaded: counters, and how long things took.

Written on the event loop only; read from any thread, where a reader may see one request half.
All durations are in nanoseconds. A record costs about a microsecond, a few list additions.
"""

import time
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from typing import Final, TypeAlias

_NS_PER_S: Final = 1_000_000_000
_NS_PER_MS: Final = 1_000_000

BOUNDS_S: Final = (
    *(1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2),
    *(5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
)
"""Upper bounds of the buckets of a `Histogram`, in seconds; one more bucket has none."""

_BOUNDS_NS: Final = tuple(round(bound * _NS_PER_S) for bound in BOUNDS_S)


Device: TypeAlias = tuple[str, int]
"""`CPU` or `GPU`, and the index within its kind."""


class Failure(StrEnum):
    """Why a request failed, as the label `reason` of the metrics has it."""

    REJECTED = "REJECTED"
    """It was refused before it ran: a full queue, a deadline that cannot be kept."""

    CANCELED = "CANCELED"
    """Its caller left."""

    BACKEND = "BACKEND"
    """The model does not run on its values."""

    OTHER = "OTHER"
    """It does not fit the model, or anything else."""


@dataclass(slots=True)
class Duration:
    """How often something happened, and how long it took in total."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count one more that took `ns`."""
        self.count += 1
        self.ns += ns


class Histogram:
    """How many durations fell below each of `BOUNDS_S`."""

    __slots__ = ("_counts", "total_ns")

    def __init__(self) -> None:
        self._counts = [0] * (len(_BOUNDS_NS) + 1)
        self.total_ns = 0

    def add(self, ns: int) -> None:
        """Count one duration."""
        self._counts[bisect_left(_BOUNDS_NS, ns)] += 1
        self.total_ns += ns

    def cumulative(self) -> list[int]:
        """Return how many durations were at most each bound; the last number counts them all."""
        return list(accumulate(self._counts))


@dataclass(slots=True)
class BatchDurations:
    """The runs that had one number of rows."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True, eq=False)
class ModelStatistics:
    """The totals of one version."""

    success: Duration = field(default_factory=Duration)
    """Requests answered, cache hits included, from arrival to answer."""

    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)

    inference_count: int = 0
    """Rows that were run for requests that succeeded; cache hits add nothing."""

    execution_count: int = 0
    """Runs of the model."""

    last_inference_ms: int = 0
    """End of the newest request, since the Unix epoch; 0 if there was none."""

    memory_bytes: Mapping[Device, int] = field(default_factory=dict)
    """What it is accounted with on each device."""

    pending: int = 0
    """Requests that wait in the queue now. Kept by whoever queues."""

    failures: dict[Failure, int] = field(default_factory=lambda: dict.fromkeys(Failure, 0))
    batches: dict[int, BatchDurations] = field(default_factory=dict)
    """By number of rows; sizes that never ran are absent."""

    queue_histogram: Histogram = field(default_factory=Histogram)
    compute_histogram: Histogram = field(default_factory=Histogram)
    """Time in the model alone, per request."""

    request_histogram: Histogram = field(default_factory=Histogram)
    """From arrival to answer, of requests that succeeded."""

    def record_request(
        self,
        ok: bool,  # noqa: FBT001 first of the counts, as in every statistic of the protocol
        queue_ns: int,
        compute_input_ns: int,
        compute_infer_ns: int,
        compute_output_ns: int,
        batch_size: int,
        total_ns: int = 0,
    ) -> None:
        """Count one request that ran, alone or in a batch.

        Args:
            ok: Whether it was answered; if not, it counts as a failure of the backend.
            queue_ns: Its wait for a batch and an instance.
            compute_input_ns: Gathering of inputs; of the whole batch, as are the next two.
            compute_infer_ns: The run.
            compute_output_ns: Splitting and serializing of outputs.
            batch_size: Rows of this request.
            total_ns: From arrival to answer; 0 means the sum of the four parts.
        """
        total_ns = total_ns or queue_ns + compute_input_ns + compute_infer_ns + compute_output_ns
        if not ok:
            self.record_failure(Failure.BACKEND, total_ns)
            return
        # Spelled out, for calls are most of what this costs.
        stage = self.success
        stage.count += 1
        stage.ns += total_ns
        stage = self.queue
        stage.count += 1
        stage.ns += queue_ns
        stage = self.compute_input
        stage.count += 1
        stage.ns += compute_input_ns
        stage = self.compute_infer
        stage.count += 1
        stage.ns += compute_infer_ns
        stage = self.compute_output
        stage.count += 1
        stage.ns += compute_output_ns
        self.inference_count += batch_size
        self.queue_histogram.add(queue_ns)
        self.compute_histogram.add(compute_infer_ns)
        self.request_histogram.add(total_ns)
        self.last_inference_ms = time.time_ns() // _NS_PER_MS

    def record_failure(self, failure: Failure, total_ns: int) -> None:
        """Count one request that was not answered, `total_ns` after it arrived."""
        self.fail.add(total_ns)
        self.failures[failure] += 1
        self._touch()

    def record_execution(
        self,
        batch_size: int,
        compute_input_ns: int,
        compute_infer_ns: int,
        compute_output_ns: int,
    ) -> None:
        """Count one run of the model on `batch_size` rows; 1 for a model without batches."""
        self.execution_count += 1
        durations = self.batches.get(batch_size)
        if durations is None:
            durations = self.batches[batch_size] = BatchDurations()
        stage = durations.compute_input
        stage.count += 1
        stage.ns += compute_input_ns
        stage = durations.compute_infer
        stage.count += 1
        stage.ns += compute_infer_ns
        stage = durations.compute_output
        stage.count += 1
        stage.ns += compute_output_ns

    def record_cache_hit(self, ns: int) -> None:
        """Count one request that the response cache answered, after `ns`: it is a success too."""
        self.cache_hit.add(ns)
        self.success.add(ns)
        self.queue.add(0)
        self.queue_histogram.add(0)
        self.request_histogram.add(ns)
        self._touch()

    def record_cache_miss(self, ns: int) -> None:
        """Count one request that the cache could not answer; `ns` is lookup and insertion."""
        self.cache_miss.add(ns)

    def _touch(self) -> None:
        self.last_inference_ms = time.time_ns() // _NS_PER_MS
