"""From the files of a version to one that may answer: load, prove, warm.

All of it blocks and runs on a thread of its own, so that serving goes on meanwhile.
"""

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar

from servery.inference.v1.model_config_pb2 import ModelConfig
from servery_inference import golden
from servery_inference.accelerators import OptionsUnsupportedError
from servery_inference.batch_policy import BatchPolicy
from servery_inference.batcher import Batcher
from servery_inference.budget import BudgetedExecutor, MemoryLedger, ThreadBudget
from servery_inference.classification import read_labels
from servery_inference.cores import usable_cores
from servery_inference.costs import Costs
from servery_inference.engine import Engine, LoadFailedError, RunFailedError
from servery_inference.ensemble_members import Lease
from servery_inference.ensemble_plan import Plan, complete
from servery_inference.ensembles import Ensemble
from servery_inference.execution import Execution
from servery_inference.golden import Golden
from servery_inference.graph_cache import GraphCache
from servery_inference.model_completion import resolve
from servery_inference.model_config import GRAPH, GivenConfig, offered
from servery_inference.options import EngineSettings, ModelOptions
from servery_inference.queueing import Room
from servery_inference.rate_limit import RateLimiter, Turns
from servery_inference.response_cache import CachedRunner, ResponseCache
from servery_inference.row_wise import mixing
from servery_inference.run_resources import demands
from servery_inference.runner import Runner
from servery_inference.sandbox import Sandbox
from servery_inference.sequence_plan import SequencePlan
from servery_inference.sequences import Sequences
from servery_inference.servable import Servable
from servery_inference.sessions import open_engine
from servery_inference.statistics import Device, ModelStatistics
from servery_inference.warmup import Warmth, batch_sizes, run_samples, warm_up
from servery_inference.watchdog import Watchdog

if TYPE_CHECKING:
    from servery_inference.tracing import Tracing

UNKNOWN_ROWS: Final = (1, 2, 8)
"""Sizes of the first axis to try where it is free and yet no batch."""

MAX_WAITING_REQUESTS: Final = 1000
_NICENESS: Final = 10

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bundle:
    """The files of a version on this machine, verified by whoever brought them."""

    folder: Path

    golden_required: bool
    """Whether a version without golden rows is refused."""

    is_admitted: bool = True
    """Whether somebody opened the graph before and vouches for it."""

    config: GivenConfig = field(default_factory=GivenConfig.none)
    """What was written about the model."""

    @property
    def graph(self) -> Path:
        """The file with the graph."""
        return self.folder / (self.config.message.default_model_filename or GRAPH)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a servable is made of."""

    engine: Engine
    config: ModelConfig
    labels: Mapping[str, Sequence[str]]
    policy: BatchPolicy

    sequences: SequencePlan | None
    """None for a model without sequences."""

    warmth: Warmth


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
        with _threads(usable_cores()) as threads:
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
            needed_bytes = max(needed_bytes, grown_bytes)
        self._ledger.reserve(needed_bytes)
        try:
            prepared = await self._prepared(model, bundle, options)
            turns = self._limiter.join(demands(prepared.config)) if self._limiter else None
        except BaseException:
            self._ledger.release(needed_bytes)
            raise
        servable = self._servable(model, version, prepared, options, turns)
        self._held[servable] = _Held(needed_bytes, turns)
        servable.statistics.memory_bytes = _by_device(needed_bytes, options)
        servable.load_s = time.perf_counter() - began
        return servable

    def release(self, servable: Servable) -> None:
        """Take back what a servable held that answers nobody any more."""
        self._cache.drop(servable.statistics)
        if held := self._held.pop(servable, None):
            self._ledger.release(held.num_bytes)
            if held.turns is not None:
                held.turns.close()

    async def _prepared(self, model: str, bundle: Bundle, options: ModelOptions) -> Prepared:
        # ONNX Runtime's own threads inherit the priority of the one that makes the session, and
        # would keep it while they serve.
        threads = self._threads
        executor = threads.quiet if options.num_threads == 1 else threads.unhurried
        work = partial(_prepare, model, bundle, options, self._settings, self._graphs)
        return await asyncio.get_running_loop().run_in_executor(executor, work)

    def _servable(
        self,
        model: str,
        version: int,
        prepared: Prepared,
        options: ModelOptions,
        turns: Turns | None,
    ) -> Servable:
        threads, warmth = self._threads, prepared.warmth
        executor = BudgetedExecutor(threads.runs, threads.budget, options.num_threads)
        costs = Costs.of(warmth.inline_elements, warmth.points)
        trace = self._tracing and self._tracing.of(model, version)
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
            return self._cached(config, runner, statistics)

        return Servable(model, version, config, prepared.labels, make_runner)

    def _ensemble(self, model: str, version: int, bundle: Bundle, lease: Lease) -> Servable:
        config = complete(model, bundle.config.message)
        plan = Plan.of(config)

        def make_runner(statistics: ModelStatistics) -> Runner:
            return self._cached(config, Ensemble(config, plan, lease, statistics), statistics)

        return Servable(model, version, config, {}, make_runner)

    def _cached(self, config: ModelConfig, runner: Runner, statistics: ModelStatistics) -> Runner:
        if config.response_cache.enable and self._cache.max_bytes:
            return CachedRunner(self._cache, runner, statistics)
        return runner


@dataclass(frozen=True, slots=True)
class _Held:
    """What a loaded version takes of what all share."""

    num_bytes: int
    turns: Turns | None


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


def _prepare(
    model: str,
    bundle: Bundle,
    options: ModelOptions,
    settings: EngineSettings,
    graphs: GraphCache | None,
) -> Prepared:
    engine = open_engine(bundle.graph, options, graphs)
    rows = bundle.folder / golden.FILE
    proof = Golden.read(rows) if rows.exists() else None
    if proof is not None:
        proof.check(engine)
    elif bundle.golden_required:
        raise LoadFailedError(f"the bundle has no {golden.FILE}")
    config = _resolved(model, bundle.config, engine, options, settings, proof)
    policy, sequences = BatchPolicy.of(config), None
    if config.HasField("sequence_batching"):
        sequences = SequencePlan.of(config, engine.signature, bundle.folder.parent)
    run_samples(engine, config, bundle.folder.parent)
    warmth = _warm(engine, config, proof, bundle.config.names_max_batch_size)
    labels = read_labels(config, (bundle.folder.parent, bundle.folder))
    offering = engine.offering(offered(config))
    return Prepared(offering, config, labels, policy, sequences, warmth)


def _resolved(
    model: str,
    given: GivenConfig,
    engine: Engine,
    options: ModelOptions,
    settings: EngineSettings,
    proof: Golden | None,
) -> ModelConfig:
    """Complete a config; let requests share runs without being told to only where that is right."""
    config = resolve(model, given, engine.signature, options, settings.auto_max_batch_size)
    if config.HasField("dynamic_batching") and not given.message.HasField("dynamic_batching"):
        problem = mixing(engine, proof)
        if problem:
            log.warning(
                "model %s does not batch: %s; write max_batch_size to its config.pbtxt if it"
                " shall all the same",
                model,
                problem,
            )
            return resolve(model, given, engine.signature, options, auto_max_batch_size=0)
    return config


def _warm(
    engine: Engine,
    config: ModelConfig,
    proof: Golden | None,
    is_chosen: bool,  # noqa: FBT001
) -> Warmth:
    can_batch = engine.signature.is_batched
    if config.max_batch_size:
        preferred = tuple(config.dynamic_batching.preferred_batch_size)
        sizes = batch_sizes(config.max_batch_size, preferred)
    else:
        sizes = list(UNKNOWN_ROWS) if can_batch else [1]
    rows = proof.rows if proof and can_batch else None
    try:
        return warm_up(engine, rows, sizes, all_sizes=is_chosen)
    except RunFailedError as error:
        if proof is not None:
            raise LoadFailedError(f"it cannot be warmed up: {error}") from None
        # Zeros are no real input: what refuses them may still be a good model.
        log.warning("not warmed up, zeros are refused: %s", error)
        return Warmth(0)


def _size_bytes(bundle: Bundle, options: ModelOptions) -> int:
    """What a model is accounted with: its files, once for every device."""
    files = sum(path.stat().st_size for path in bundle.folder.iterdir() if path.is_file())
    return files * len(options.device_ids)


def _by_device(num_bytes: int, options: ModelOptions) -> dict[Device, int]:
    kind = "CPU" if options.provider == "cpu" else "GPU"
    return {(kind, index): num_bytes // len(options.device_ids) for index in options.device_ids}
