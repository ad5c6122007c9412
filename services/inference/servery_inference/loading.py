"""From the files of a version to one that may answer, within what all models share.

What blocks runs on a thread of its own, so that serving goes on meanwhile.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, Self, TypeVar

from servery.inference.v1.model_config_pb2 import ModelConfig
from servery_inference.accelerators import OptionsUnsupportedError
from servery_inference.batcher import Batcher
from servery_inference.budget import BudgetedExecutor, MemoryLedger, ThreadBudget
from servery_inference.bundle import Bundle
from servery_inference.costs import Costs
from servery_inference.engine import LoadFailedError
from servery_inference.ensemble_members import Lease
from servery_inference.ensemble_plan import Plan, complete
from servery_inference.ensembles import Ensemble
from servery_inference.execution import Execution
from servery_inference.explanation import blamed
from servery_inference.graph_cache import GraphCache
from servery_inference.options import EngineSettings, ModelOptions
from servery_inference.preparation import Prepared, prepare
from servery_inference.queueing import Room
from servery_inference.rate_limit import RateLimiter, Turns
from servery_inference.response_cache import CachedRunner, ResponseCache
from servery_inference.run_resources import demands
from servery_inference.runner import Runner
from servery_inference.sandbox import Sandbox
from servery_inference.sequences import Sequences
from servery_inference.servable import Servable
from servery_inference.statistics import Device, ModelStatistics
from servery_inference.watchdog import Watchdog

if TYPE_CHECKING:
    from servery_inference.tracing import Tracing

MAX_WAITING_REQUESTS: Final = 1000
_NICENESS: Final = 10

T = TypeVar("T")


class Loader:
    """Makes servables out of bundles, one after the other.

    Args:
        settings: How sessions run whose config does not say otherwise.
        ledger: What models may use of memory.
        room: What may wait for its turn.
        cache: Keeps answers.
        threads: What brings models up, and what runs them.
        sandbox: Where graphs are opened first that nobody vouches for; None to trust them.
        limiter: Decides when runs of models with limits begin; None to begin them at once.
        tracing: Makes spans of requests and runs; None to make none.
        graphs: Keeps what was found out about graphs; None to keep nothing.
    """

    def __init__(
        self,
        settings: EngineSettings,
        ledger: MemoryLedger,
        room: Room,
        cache: ResponseCache,
        threads: "_Threads",
        sandbox: Sandbox | None = None,
        limiter: RateLimiter | None = None,
        tracing: "Tracing | None" = None,
        graphs: GraphCache | None = None,
    ) -> None:
        self._settings = settings
        self._graphs = graphs
        self._tracing = tracing
        self._limiter = limiter
        self._sandbox = sandbox
        self._ledger = ledger
        self._room = room
        self._cache = cache
        self._threads = threads
        self._held: dict[Servable, _Held] = {}

    @classmethod
    @contextmanager
    def open(
        cls,
        settings: EngineSettings,
        memory_limit_bytes: int | None = None,
        max_waiting_requests: int = MAX_WAITING_REQUESTS,
        response_cache_bytes: int = 0,
        sandbox: Sandbox | None = None,
        limiter: RateLimiter | None = None,
        tracing: "Tracing | None" = None,
        graphs: GraphCache | None = None,
    ) -> Iterator[Self]:
        """Hold the threads that load and run for the length of the block."""
        with _threads(settings.cores) as threads:
            ledger = MemoryLedger(memory_limit_bytes)
            room, cache = Room(max_waiting_requests), ResponseCache(response_cache_bytes)
            yield cls(settings, ledger, room, cache, threads, sandbox, limiter, tracing, graphs)

    async def quietly(self, work: Callable[[], T]) -> T:
        """Run blocking `work` on the loading thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads.quiet, work)

    async def load(self, model: str, version: int, bundle: Bundle, lease: Lease) -> Servable:
        """Load a version and prove it on its golden rows.

        Args:
            model: Name on the wire.
            version: From 1 up.
            bundle: Its files.
            lease: Finds the models that an ensemble is made of.

        Raises:
            LoadFailedError: It must not answer requests.
        """
        if bundle.config.is_ensemble:
            return self._ensemble(model, version, bundle, lease)
        began = time.perf_counter()
        try:
            options = ModelOptions.of(bundle.config.message, self._settings)
        except OptionsUnsupportedError as error:
            raise LoadFailedError(str(error)) from None
        needed_bytes = await self.quietly(partial(_size_bytes, bundle, options))
        if self._sandbox and not bundle.is_admitted:
            grown_bytes = await self._sandbox.admit(bundle.graph)
            if bundle.explanation is not None:
                with blamed():
                    grown_bytes += await self._sandbox.admit(bundle.explanation)
            needed_bytes = max(needed_bytes, grown_bytes)
        self._ledger.reserve(needed_bytes)
        try:
            prepared = await self._prepared(model, bundle, options)
            turns = self._turns(prepared)
            explaining = self._turns(prepared.explanation) if prepared.explanation else None
        except BaseException:
            self._ledger.release(needed_bytes)
            raise
        servable = self._servable(model, version, prepared, options, turns)
        if prepared.explanation:
            # Explanations take many times as long as answers, which shall find a free thread.
            fewer = replace(options, instances=max(1, options.instances // 2))
            servable.explanation = self._servable(
                model, version, prepared.explanation, fewer, explaining, servable.statistics
            )
        self._held[servable] = _Held(needed_bytes, [each for each in (turns, explaining) if each])
        servable.statistics.memory_bytes = _by_device(needed_bytes, options)
        servable.load_s = time.perf_counter() - began
        return servable

    def release(self, servable: Servable) -> None:
        """Take back what a servable held that answers nobody any more."""
        self._cache.drop(servable.statistics)
        if held := self._held.pop(servable, None):
            self._ledger.release(held.num_bytes)
            for turns in held.turns:
                turns.close()

    async def _prepared(self, model: str, bundle: Bundle, options: ModelOptions) -> Prepared:
        # ONNX Runtime's own threads inherit the priority of the one that makes the session, and
        # would keep it while they serve.
        threads = self._threads
        executor = threads.quiet if options.num_threads == 1 else threads.unhurried
        work = partial(prepare, model, bundle, options, self._settings, self._graphs)
        return await asyncio.get_running_loop().run_in_executor(executor, work)

    def _servable(
        self,
        model: str,
        version: int,
        prepared: Prepared,
        options: ModelOptions,
        turns: Turns | None,
        statistics: ModelStatistics | None = None,
    ) -> Servable:
        threads, warmth = self._threads, prepared.warmth
        executor = BudgetedExecutor(threads.runs, threads.budget, options.num_threads)
        costs = Costs.of(warmth.inline_elements, warmth.points)
        trace = self._tracing and self._tracing.of(model, version, prepared.file)
        execute = trace.execution if trace else Execution
        execution = execute(prepared.engine, costs, threads.watchdog, executor)
        config = prepared.config
        states = [state.output_name for state in config.sequence_batching.state]
        outputs = list(dict.fromkeys([*[output.name for output in config.output], *states]))
        policy, sequences = prepared.policy, prepared.sequences

        def make_runner(statistics: ModelStatistics) -> Runner:
            slots = options.instances if turns is None else len(turns.demands)
            batcher = Batcher(
                model, outputs, execution, policy, statistics, self._room, slots, turns
            )
            runner: Runner = trace.runner(batcher) if trace else batcher
            if sequences is not None:
                return Sequences(model, sequences, runner, self._room)
            return self._cached(config, runner, statistics, prepared.file)

        return Servable(model, version, config, prepared.labels, make_runner, statistics)

    def _ensemble(self, model: str, version: int, bundle: Bundle, lease: Lease) -> Servable:
        config = complete(model, bundle.config.message)
        plan = Plan.of(config)

        def make_runner(statistics: ModelStatistics) -> Runner:
            return self._cached(config, Ensemble(config, plan, lease, statistics), statistics)

        return Servable(model, version, config, {}, make_runner)

    def _turns(self, prepared: Prepared) -> Turns | None:
        return self._limiter.join(demands(prepared.config)) if self._limiter else None

    def _cached(
        self, config: ModelConfig, runner: Runner, statistics: ModelStatistics, graph: str = ""
    ) -> Runner:
        if config.response_cache.enable and self._cache.max_bytes:
            return CachedRunner(self._cache, runner, statistics, graph)
        return runner


@dataclass(frozen=True, slots=True)
class _Held:
    """What a loaded version takes of what all share."""

    num_bytes: int
    turns: Sequence[Turns]


@dataclass(frozen=True, slots=True)
class _Threads:
    quiet: Executor
    """Loads, at low priority, so that serving goes on meanwhile."""

    unhurried: Executor
    """Loads models that have threads of their own, which would inherit the priority."""

    runs: Executor
    budget: ThreadBudget
    watchdog: Watchdog


@contextmanager
def _threads(cores: int) -> Iterator[_Threads]:
    quiet = ThreadPoolExecutor(1, "loading", initializer=_lower_priority)
    unhurried = ThreadPoolExecutor(1, "loading-wide")
    runs = ThreadPoolExecutor(cores, "running")
    try:
        with Watchdog.watching() as watchdog:
            yield _Threads(quiet, unhurried, runs, ThreadBudget(cores), watchdog)
    finally:
        for executor in (quiet, unhurried, runs):
            executor.shutdown(wait=False, cancel_futures=True)


def _lower_priority() -> None:
    with contextlib.suppress(OSError):  # On Linux, threads have priorities of their own.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _size_bytes(bundle: Bundle, options: ModelOptions) -> int:
    """What a model is accounted with: its files, once for every device."""
    files = sum(path.stat().st_size for path in bundle.folder.iterdir() if path.is_file())
    return files * len(options.device_ids)


def _by_device(num_bytes: int, options: ModelOptions) -> dict[Device, int]:
    kind = "CPU" if options.provider == "cpu" else "GPU"
    return {(kind, index): num_bytes // len(options.device_ids) for index in options.device_ids}
