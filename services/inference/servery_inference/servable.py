"""One version of a model that answers requests, what it has done so far, and its way out."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import onnxruntime as ort

from servery.inference.v1.model_config_pb2 import ModelConfig
from servery_inference.classification import Labels
from servery_inference.engine import Engine, RunEndedError, RunFailedError
from servery_inference.model_config import offered
from servery_inference.request import (
    Answer,
    InferenceRequestInvalidError,
    InferRequest,
    Output,
    Timing,
)
from servery_inference.statistics import Failure, ModelStatistics
from servery_inference.tensors import bind, wanted_outputs
from servery_inference.watchdog import Watchdog

INLINE_PARSED_BYTES: Final = 16 << 10
"""Requests with more bytes that need Python work for each element leave the event loop."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of a model gave."""

    outputs: list[Output]
    rows: int

    started_ns: int
    """When its thread took it up, by `time.perf_counter_ns`."""

    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int


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
    ) -> None:
        self.model = model
        self.version = version
        self.config = config
        self.signature = offered(config)
        self.statistics = ModelStatistics()
        self.labels = labels
        self._engine = engine
        self._inline_elements = inline_elements
        self._watchdog = watchdog
        self._executor = executor
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

    async def infer(self, request: InferRequest) -> Answer:
        """Run the model on `request`.

        Short runs happen here and now; long ones on another thread, where a caller that leaves
        ends them.

        Raises:
            InferenceRequestInvalidError: The request does not fit the model.
        """
        arrival = time.perf_counter_ns()
        try:
            run = self._run_here(request) if self._is_short(request) else None
            run = run or await self._run_elsewhere(request)
        except BaseException as error:
            failure = _failure(error)
            self.statistics.record_failure(failure, time.perf_counter_ns() - arrival)
            raise
        timing = Timing(
            run.started_ns - arrival,
            run.compute_input_ns,
            run.compute_infer_ns,
            run.compute_output_ns,
        )
        self.statistics.record_execution(
            run.rows, timing.compute_input_ns, timing.compute_infer_ns, timing.compute_output_ns
        )
        self.statistics.record_request(
            ok=True,
            queue_ns=timing.queue_ns,
            compute_input_ns=timing.compute_input_ns,
            compute_infer_ns=timing.compute_infer_ns,
            compute_output_ns=timing.compute_output_ns,
            batch_size=run.rows,
            total_ns=time.perf_counter_ns() - arrival,
        )
        return Answer(self.version, run.outputs, timing)

    def _is_short(self, request: InferRequest) -> bool:
        return (
            request.parsed_bytes <= INLINE_PARSED_BYTES
            and request.num_elements() <= self._inline_elements
        )

    def _run_here(self, request: InferRequest) -> Run | None:
        try:
            return self._watchdog.watch(partial(self._run, request))
        except RunEndedError:
            self._inline_elements = 0  # Its speed depends on more than the size of the input.
            return None

    async def _run_elsewhere(self, request: InferRequest) -> Run:
        options = ort.RunOptions()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, self._run, request, options)
        except asyncio.CancelledError:
            options.terminate = True
            raise

    def _run(self, request: InferRequest, options: ort.RunOptions) -> Run:
        started = time.perf_counter_ns()
        names = wanted_outputs(request, self.signature)
        feed = bind(request, self.signature)
        bound = time.perf_counter_ns()
        try:
            values = self._engine.run(feed, names, options)
        except RunFailedError as error:
            raise ModelCannotRunError(
                f"model '{request.model}' cannot run on these values: {error}", request.model
            ) from None
        ran = time.perf_counter_ns()
        outputs = [
            Output(name, self.signature.outputs[name].datatype.wire, value)
            for name, value in zip(names, values, strict=True)
        ]
        rows = len(next(iter(feed.values()))) if self.signature.max_batch_size else 1
        ended = time.perf_counter_ns()
        return Run(outputs, rows, started, bound - started, ran - bound, ended - ran)


class ModelCannotRunError(InferenceRequestInvalidError):
    """The graph itself refuses the values of a request that fits its signature."""


def _failure(error: BaseException) -> Failure:
    match error:
        case ModelCannotRunError():
            return Failure.BACKEND
        case asyncio.CancelledError():
            return Failure.CANCELED
        case _:
            return Failure.OTHER
