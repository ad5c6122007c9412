"""From the files of a version to one that may answer: load, prove, warm.

All of it blocks and runs on one thread of low priority, so that serving goes on meanwhile.
"""

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

import numpy as np

from servery_inference import golden
from servery_inference.classification import read_labels
from servery_inference.cores import usable_cores
from servery_inference.engine import (
    Engine,
    EngineSettings,
    LoadFailedError,
    RunFailedError,
    open_engine,
)
from servery_inference.golden import Golden
from servery_inference.model_config import GivenConfig, resolve
from servery_inference.request import Array
from servery_inference.servable import Servable
from servery_inference.signature import Signature
from servery_inference.watchdog import Watchdog

GRAPH: Final = "model.onnx"
WARM_UP_ROWS: Final = (1, 2, 8)
_REPEATS: Final = 3
_INLINE_S: Final = 0.001
_BEYOND_MEASURED: Final = 8
_NICENESS: Final = 10

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bundle:
    """The files of a version on this machine, verified by whoever brought them."""

    folder: Path

    golden_required: bool
    """Whether a version without golden rows is refused."""

    config: GivenConfig = field(default_factory=GivenConfig.none)
    """What was written about the model."""

    @property
    def graph(self) -> Path:
        """The file with the graph."""
        return self.folder / (self.config.message.default_model_filename or GRAPH)


class Loader:
    """Makes servables out of bundles, one after the other."""

    def __init__(
        self, settings: EngineSettings, watchdog: Watchdog, quiet: Executor, runs: Executor
    ) -> None:
        self._settings = settings
        self._watchdog = watchdog
        self._quiet = quiet
        self._runs = runs

    @classmethod
    @contextmanager
    def open(cls, settings: EngineSettings) -> Iterator[Self]:
        """Hold the threads that load and run for the length of the block."""
        # ONNX Runtime's own threads inherit the priority of the one that makes the session, and
        # would keep it while they serve.
        lower = _lower_priority if settings.intra_op_threads == 1 else None
        workers = max(1, usable_cores() // settings.intra_op_threads)
        quiet = ThreadPoolExecutor(1, "loading", initializer=lower)
        runs = ThreadPoolExecutor(workers, "running")
        try:
            with Watchdog.watching() as watchdog:
                yield cls(settings, watchdog, quiet, runs)
        finally:
            quiet.shutdown(wait=False, cancel_futures=True)
            runs.shutdown(wait=False, cancel_futures=True)

    async def quietly(self, work: Callable[[], T]) -> T:
        """Run blocking `work` on the loading thread."""
        return await asyncio.get_running_loop().run_in_executor(self._quiet, work)

    async def load(self, model: str, version: int, bundle: Bundle) -> Servable:
        """Load a version and prove it on its golden rows.

        Raises:
            LoadFailedError: It must not answer requests.
        """
        folder = bundle.folder
        engine, inline_elements = await self.quietly(lambda: _prepare(bundle, self._settings))
        config = resolve(model, bundle.config, engine.signature, self._settings.auto_max_batch_size)
        labels = await self.quietly(partial(read_labels, config, (folder.parent, folder)))
        return Servable(
            model, version, engine, config, labels, inline_elements, self._watchdog, self._runs
        )

    def release(self, servable: Servable) -> None:
        """Take back what a servable held that answers nobody any more."""


def _lower_priority() -> None:
    with contextlib.suppress(OSError):  # On Linux, threads have priorities of their own.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _prepare(bundle: Bundle, settings: EngineSettings) -> tuple[Engine, int]:
    engine = open_engine(bundle.graph, settings)
    rows = bundle.folder / golden.FILE
    if rows.exists():
        proof = Golden.read(rows)
        proof.check(engine)
        return engine, warm_up(engine, proof.rows if engine.signature.is_batched else None)
    if bundle.golden_required:
        raise LoadFailedError(f"the bundle has no {golden.FILE}")
    try:
        return engine, warm_up(engine, None)
    except RunFailedError as error:
        # Zeros are no real input: what refuses them may still be a good model.
        log.warning("not warmed up, zeros are refused: %s", error)
        return engine, 0


def warm_up(engine: Engine, rows: Callable[[int], dict[str, Array]] | None) -> int:
    """Run a graph at several batch sizes until its buffers are there and its speed is known.

    Args:
        engine: The graph.
        rows: Returns that many rows of real input; None for zeros.

    Returns:
        Up to how many input elements a run takes less than a millisecond, extrapolated to at most
        8 times the largest batch that was measured; 0 if even one row takes longer.

    Raises:
        RunFailedError: The graph refuses the input.
    """
    signature = engine.signature
    make = rows or (lambda count: _zeros(signature, count))
    points: list[tuple[int, float]] = []
    for count in WARM_UP_ROWS if signature.is_batched else WARM_UP_ROWS[:1]:
        feed = make(count)
        seconds = min(_seconds(engine, feed) for _ in range(_REPEATS))
        points.append((sum(array.size for array in feed.values()), seconds))
    return inline_elements(points)


def inline_elements(points: list[tuple[int, float]]) -> int:
    """Extrapolate `(elements, seconds)`, by rising size, to what runs in under a millisecond."""
    (small, fast), (large, slow) = points[0], points[-1]
    if fast >= _INLINE_S:
        return 0
    if small == large:
        return small
    per_element = max((slow - fast) / (large - small), 1e-12)
    return min(small + int((_INLINE_S - fast) / per_element), large * _BEYOND_MEASURED)


def _seconds(engine: Engine, feed: dict[str, Array]) -> float:
    start = time.perf_counter()
    engine.run(feed, list(engine.signature.outputs))
    return time.perf_counter() - start


def _zeros(signature: Signature, count: int) -> dict[str, Array]:
    feed: dict[str, Array] = {}
    for tensor in signature.inputs.values():
        free = [1 if size == -1 else size for size in tensor.shape]
        if signature.is_batched:
            free[0] = count
        empty = "" if tensor.datatype.is_bytes else 0
        feed[tensor.name] = np.full(free, empty, tensor.datatype.numpy)
    return feed
