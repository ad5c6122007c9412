"""One version of a model that answers requests, what it has done so far, and its way out."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from servery.inference.v1.model_config_pb2 import ModelConfig
from servery_inference.batcher import Batcher, ModelCannotRunError
from servery_inference.classification import Labels
from servery_inference.execution import Run
from servery_inference.explanation import ExplanationUnavailableError
from servery_inference.model_config import offered
from servery_inference.queueing import (
    DeadlineUnreachableError,
    QueueFullError,
    QueueTimeoutError,
)
from servery_inference.request import (
    Answer,
    Array,
    InferenceRequestInvalidError,
    InferRequest,
    Output,
    Terms,
    Timing,
)
from servery_inference.runner import Runner
from servery_inference.statistics import Failure, ModelStatistics
from servery_inference.tensors import bind, fit, wanted_outputs

INLINE_PARSED_BYTES: Final = 16 << 10
"""Requests with more bytes that need Python work for each element are read on another thread."""

_INLINE_RAW_BYTES: Final = 1 << 20


class Servable:
    """A loaded version. For one event loop.

    Args:
        model: Name on the wire.
        version: From 1 up.
        config: What it is told to be, complete; see `model_completion.resolve`.
        labels: Names of classes, by output.
        make_runner: Makes what runs its requests, which counts runs where it is told to.
        statistics: Where to count, if that is not to begin anew.
    """

    def __init__(
        self,
        model: str,
        version: int,
        config: ModelConfig,
        labels: Labels,
        make_runner: Callable[[ModelStatistics], Runner],
        statistics: ModelStatistics | None = None,
    ) -> None:
        self.model = model
        self.version = version
        self.config = config
        self.signature = offered(config)
        self.statistics = statistics or ModelStatistics()
        self.labels = labels
        self.load_s = 0.0
        """How long it took until it could answer."""

        self.explanation: Servable | None = None
        """Takes the same inputs, and explains what this one answers; None if nothing does."""

        self._runner = make_runner(self.statistics)
        self._batcher = self._runner if isinstance(self._runner, Batcher) else None
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_direct(self) -> bool:
        """Whether requests run by themselves: no sequences, steps or stored answers in between."""
        return self._batcher is not None

    @property
    def joins_unasked(self) -> bool:
        """Whether plain requests of one turn of the event loop may share a run."""
        return self._batcher is not None and self._batcher.joins_unasked

    def joinable(self, count: int, rows: int, size: int) -> int:
        """Tell how many of `count` plain requests should share a run; see `Batcher.joinable`."""
        return 1 if self._batcher is None else self._batcher.joinable(count, rows, size)

    def explainer(self) -> "Servable":
        """Return what explains its answers; leases of this version keep it loaded too.

        Raises:
            ExplanationUnavailableError: Nothing does.
        """
        if self.explanation is None:
            self.statistics.record_failure(Failure.OTHER, 0)
            raise ExplanationUnavailableError(self.config, self.version)
        return self.explanation

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Keep the version loaded for the length of the block."""
        self._in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def drained(self) -> None:
        """Return when no lease is left; nobody must take new ones."""
        await self._idle.wait()

    async def infer(self, request: InferRequest, deadline: float | None = None) -> Answer:
        """Run the model on `request`.

        Short runs happen here and now; others wait for their turn and happen on another thread,
        where callers that leave end them.

        Args:
            request: What to run.
            deadline: When its caller stops waiting, by `time.monotonic`; None for never.

        Raises:
            InferenceRequestInvalidError: The request does not fit the model.
            QueueFullError: Too many requests wait.
            QueueTimeoutError: It would wait, or has waited, longer than it may.
            DeadlineUnreachableError: It cannot be answered by `deadline`.
        """
        arrival = time.perf_counter_ns()
        try:
            names = wanted_outputs(request, self.signature)
            if _is_quickly_read(request):
                feed = bind(request, self.signature)
            else:
                feed = await asyncio.to_thread(bind, request, self.signature)
            timing, values = await self._run(arrival, feed, names, request.terms, deadline)
        except BaseException as error:
            self.statistics.record_failure(_failure(error), time.perf_counter_ns() - arrival)
            raise
        datatypes = self.signature.outputs
        outputs = [
            Output(name, datatypes[name].datatype.wire, value)
            for name, value in zip(names, values, strict=True)
        ]
        return Answer(self.version, outputs, timing, self._rows(feed))

    def infer_now(
        self,
        feed: Mapping[str, Array],
        names: Sequence[str],
        arrivals: Sequence[int],
        rows: int,
        size: int,
        deadline: float | None,
    ) -> Run | None:
        """Run the model at once on requests that say nothing about their turn.

        Args:
            feed: An array for every input, which fits, of all requests together.
            names: Outputs to compute, in the order of the model.
            arrivals: When each request arrived, by `time.perf_counter_ns`.
            rows: Of each request.
            size: Of all requests together; see `costs`.
            deadline: See `infer`; the earliest of the requests.

        Returns:
            None if that cannot be; nothing is recorded then.

        Raises:
            ModelCannotRunError: The graph refuses the values; nothing is recorded.
        """
        if self._batcher is None:
            return None
        count = len(arrivals)
        is_joined = count > 1
        run = self._batcher.run_now(feed, names, rows * count, size, deadline, is_joined=is_joined)
        if run is None:
            return None
        ended = time.perf_counter_ns()
        for arrival in arrivals:
            wait_ns = run.started_ns - arrival
            self.statistics.record_request(
                ok=True,
                queue_ns=wait_ns if is_joined else 0,
                compute_input_ns=run.compute_input_ns + (0 if is_joined else wait_ns),
                compute_infer_ns=run.compute_infer_ns,
                compute_output_ns=0,
                batch_size=rows,
                total_ns=ended - arrival,
            )
        return run

    async def compute(
        self,
        feed: Mapping[str, Array],
        names: Collection[str],
        terms: Terms,
        deadline: float | None,
    ) -> dict[str, Array]:
        """Run the model as a step of another one, on arrays as they are; see `infer`.

        Args:
            feed: The inputs; not changed, and not kept.
            names: Outputs to compute.
            terms: What the request says about its turn.
            deadline: See `infer`.
        """
        arrival = time.perf_counter_ns()
        try:
            unknown = [name for name in names if name not in self.signature.outputs]
            if unknown:
                raise InferenceRequestInvalidError(
                    f"unexpected inference output '{unknown[0]}' for model '{self.model}'",
                    self.model,
                )
            wanted = [name for name in self.signature.outputs if name in names]
            fitted = fit(feed, self.signature, self.model)
            _, values = await self._run(arrival, fitted, wanted, terms, deadline)
        except BaseException as error:
            self.statistics.record_failure(_failure(error), time.perf_counter_ns() - arrival)
            raise
        return dict(zip(wanted, values, strict=True))

    async def _run(
        self,
        arrival: int,
        feed: Mapping[str, Array],
        names: Sequence[str],
        terms: Terms,
        deadline: float | None,
    ) -> tuple[Timing, Sequence[Array]]:
        bind_ns = time.perf_counter_ns() - arrival
        rows = self._rows(feed)
        result = await self._runner.run(feed, names, rows, _size(feed), terms, deadline)
        timing = result.timing
        timing.compute_input_ns += bind_ns
        if not result.is_cached:
            self.statistics.record_request(
                ok=True,
                queue_ns=timing.queue_ns,
                compute_input_ns=timing.compute_input_ns,
                compute_infer_ns=timing.compute_infer_ns,
                compute_output_ns=timing.compute_output_ns,
                batch_size=rows,
                total_ns=time.perf_counter_ns() - arrival,
            )
        return timing, result.values

    def _rows(self, feed: Mapping[str, Array]) -> int:
        return len(next(iter(feed.values()))) if self.signature.max_batch_size and feed else 1


def _is_quickly_read(request: InferRequest) -> bool:
    if request.parsed_bytes > INLINE_PARSED_BYTES:
        return False
    raw_bytes = 0
    for tensor in request.inputs:
        if tensor.raw is not None:
            raw_bytes += len(tensor.raw)
    return raw_bytes <= _INLINE_RAW_BYTES


def _size(feed: Mapping[str, Array]) -> int:
    size = 0
    for array in feed.values():
        size += array.size
        if array.dtype.kind == "O":
            size += sum(map(len, array.flat))
    return size


def _failure(error: BaseException) -> Failure:
    match error:
        case ModelCannotRunError():
            return Failure.BACKEND
        case asyncio.CancelledError():
            return Failure.CANCELED
        case QueueFullError() | QueueTimeoutError() | DeadlineUnreachableError():
            return Failure.REJECTED
        case _:
            return Failure.OTHER
