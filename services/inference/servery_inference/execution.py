"""Runs of one engine: on the event loop if they are short, on another thread if they are not."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import onnxruntime as ort

from servery_inference.batch import join
from servery_inference.costs import Costs
from servery_inference.engine import Engine, RunEndedError
from servery_inference.request import Array
from servery_inference.watchdog import Watchdog

_S_PER_NS = 1e-9


@dataclass(slots=True)
class Run:
    """What one run gave."""

    values: list[Array]
    started_ns: int
    """When its thread took it up, by `time.perf_counter_ns`."""

    compute_input_ns: int
    compute_infer_ns: int


class Execution:
    """Runs one engine and learns what that costs. For one event loop.

    Args:
        engine: Warm.
        costs: What is known about it; learns from every run.
        watchdog: Ends runs on the event loop that overstay.
        executor: Where long runs happen.
    """

    def __init__(
        self, engine: Engine, costs: Costs, watchdog: Watchdog, executor: Executor
    ) -> None:
        self.costs = costs
        self._engine = engine
        self._watchdog = watchdog
        self._executor = executor

    def here(
        self, feeds: Sequence[Mapping[str, Array]], names: Sequence[str], size: int
    ) -> Run | None:
        """Run on this thread.

        Args:
            feeds: Inputs of one kind, to be joined.
            names: Outputs to compute.
            size: Of all inputs together; see `costs`.

        Returns:
            None if the run overstayed and was ended.

        Raises:
            RunFailedError: The graph refuses the values.
        """
        try:
            run = self._watchdog.watch(self._run, feeds, names)
        except RunEndedError:
            self.costs.distrust()
            return None
        self.costs.record(size, run.compute_infer_ns * _S_PER_NS)
        return run

    async def elsewhere(
        self,
        feeds: Sequence[Mapping[str, Array]],
        names: Sequence[str],
        size: int,
        options: ort.RunOptions,
    ) -> Run:
        """Run on another thread; see `here`.

        Raises:
            RunFailedError: The graph refuses the values.
            RunEndedError: `options.terminate` was set meanwhile.
        """
        loop = asyncio.get_running_loop()
        run = await loop.run_in_executor(self._executor, self._run, feeds, names, options)
        self.costs.record(size, run.compute_infer_ns * _S_PER_NS)
        return run

    def _run(
        self, feeds: Sequence[Mapping[str, Array]], names: Sequence[str], options: ort.RunOptions
    ) -> Run:
        if options.terminate:
            raise RunEndedError
        started = time.perf_counter_ns()
        feed = join(feeds)
        joined = time.perf_counter_ns()
        values = self._engine.run(feed, names, options)
        return Run(values, started, joined - started, time.perf_counter_ns() - joined)
