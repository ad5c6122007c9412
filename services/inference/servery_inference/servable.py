"""One version of a model that answers requests, what it has done so far, and its way out."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Final

from servery.inference.v1.model_config_pb2 import ModelConfig
from servery_inference.batch_policy import BatchPolicy
from servery_inference.batcher import Batcher, ModelCannotRunError, Result
from servery_inference.classification import Labels
from servery_inference.cores import usable_cores
from servery_inference.costs import Costs
from servery_inference.engine import Engine
from servery_inference.execution import Execution
from servery_inference.model_config import offered
from servery_inference.queueing import (
    DeadlineUnreachableError,
    QueueFullError,
    QueueTimeoutError,
    Room,
)
from servery_inference.request import Answer, Array, InferRequest, Output, Terms, Timing
from servery_inference.statistics import Failure, ModelStatistics
from servery_inference.tensors import bind, wanted_outputs
from servery_inference.watchdog import Watchdog

INLINE_PARSED_BYTES: Final = 16 << 10
"""Requests with more bytes that need Python work for each element are read on another thread."""

_INLINE_RAW_BYTES: Final = 1 << 20
_MAX_WAITING: Final = 1000


class Servable:
    """A loaded version. For one event loop.

    Args:
        model: Name on the wire.
        version: From 1 up.
        engine: Its graph, warm.
        config: What it is told to be, complete; see `model_config.resolve`.
        labels: Names of classes, by output.
        inline_elements: Requests with at most so many input elements run in less than a hand-over
            to another thread is worth.
        watchdog: Ends those that take long nevertheless.
        executor: Where longer ones run.
        room: Bounds what waits, together with others.
    """

    def __init__(
        self,
        model: str,
        version: int,
        engine: Engine,
        config: ModelConfig,
        labels: Labels,
        inline_elements: int,
        watchdog: Watchdog,
        executor: Executor,
        room: Room | None = None,
    ) -> None:
        self.model = model
        self.version = version
        self.config = config
        self.signature = offered(config)
        self.statistics = ModelStatistics()
        self.labels = labels
        execution = Execution(engine, Costs(inline_elements), watchdog, executor)
        self._batcher = Batcher(
            model,
            list(self.signature.outputs),
            execution,
            BatchPolicy.of(config),
            self.statistics,
            room or Room(_MAX_WAITING),
            slots=usable_cores(),
        )
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

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
            bind_ns = time.perf_counter_ns() - arrival
            result = await self._run(feed, names, request.terms, deadline)
        except BaseException as error:
            self.statistics.record_failure(_failure(error), time.perf_counter_ns() - arrival)
            raise
        timing = Timing(
            result.timing.queue_ns,
            result.timing.compute_input_ns + bind_ns,
            result.timing.compute_infer_ns,
            result.timing.compute_output_ns,
        )
        self._count(feed, timing, arrival)
        datatypes = self.signature.outputs
        outputs = [
            Output(name, datatypes[name].datatype.wire, value)
            for name, value in zip(names, result.values, strict=True)
        ]
        return Answer(self.version, outputs, timing)

    async def _run(
        self,
        feed: Mapping[str, Array],
        names: Sequence[str],
        terms: Terms,
        deadline: float | None,
    ) -> Result:
        return await self._batcher.run(feed, names, self._rows(feed), _size(feed), terms, deadline)

    def _rows(self, feed: Mapping[str, Array]) -> int:
        return len(next(iter(feed.values()))) if self.signature.max_batch_size and feed else 1

    def _count(self, feed: Mapping[str, Array], timing: Timing, arrival: int) -> None:
        self.statistics.record_request(
            ok=True,
            queue_ns=timing.queue_ns,
            compute_input_ns=timing.compute_input_ns,
            compute_infer_ns=timing.compute_infer_ns,
            compute_output_ns=timing.compute_output_ns,
            batch_size=self._rows(feed),
            total_ns=time.perf_counter_ns() - arrival,
        )


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
