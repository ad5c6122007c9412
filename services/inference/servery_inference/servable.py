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

from servery_inference.codec import encode
from servery_inference.engine import Engine, RunEndedError, RunFailedError
from servery_inference.request import InferenceRequestInvalidError, InferRequest, Output
from servery_inference.tensors import bind, wanted_outputs
from servery_inference.watchdog import Watchdog
from servery_rpc.errors import ServeryError

INLINE_PARSED_BYTES: Final = 16 << 10
"""Requests with more bytes that need Python work for each element leave the event loop."""


@dataclass(slots=True)
class Statistics:
    """Totals since the version was loaded. Written on the event loop only."""

    success: int = 0
    failure: int = 0

    inference_count: int = 0
    """Rows that were run."""

    execution_count: int = 0

    request_ns: int = 0
    """Time from arrival to answer, of requests that succeeded."""

    compute_infer_ns: int = 0
    """Time inside the model alone."""

    last_inference_ms: int = 0
    """Arrival of the newest request, since the Unix epoch; 0 if there was none."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of a model gave."""

    answer: bytes
    rows: int
    compute_infer_ns: int


class Servable:
    """A loaded version. For one event loop.

    Args:
        model: Name on the wire.
        version: From 1 up.
        engine: Its graph, warm.
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
        inline_elements: int,
        watchdog: Watchdog,
        executor: Executor,
    ) -> None:
        self.model = model
        self.version = version
        self.signature = engine.signature
        self.statistics = Statistics()
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

    async def infer(self, request: InferRequest) -> bytes:
        """Run the model on `request` and serialize the answer.

        Short runs happen here and now; long ones on another thread, where a caller that leaves
        ends them.

        Raises:
            InferenceRequestInvalidError: The request does not fit the model.
        """
        arrival = time.perf_counter_ns()
        self.statistics.last_inference_ms = time.time_ns() // 1_000_000
        try:
            run = self._run_here(request) if self._is_short(request) else None
            run = run or await self._run_elsewhere(request)
        except ServeryError:
            self.statistics.failure += 1
            raise
        self.statistics.success += 1
        self.statistics.inference_count += run.rows
        self.statistics.execution_count += 1
        self.statistics.compute_infer_ns += run.compute_infer_ns
        self.statistics.request_ns += time.perf_counter_ns() - arrival
        return run.answer

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
        names = wanted_outputs(request, self.signature)
        feed = bind(request, self.signature)
        start = time.perf_counter_ns()
        try:
            values = self._engine.run(feed, names, options)
        except RunFailedError as error:
            raise InferenceRequestInvalidError(
                f"model '{request.model}' cannot run on these values: {error}", request.model
            ) from None
        ran = time.perf_counter_ns() - start
        outputs = [
            Output(name, self.signature.outputs[name].datatype.wire, value)
            for name, value in zip(names, values, strict=True)
        ]
        rows = len(next(iter(feed.values()))) if self.signature.is_batched else 1
        return Run(encode(request, self.version, outputs), rows, ran)
