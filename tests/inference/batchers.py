"""Batchers of small graphs, without a server around them."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from servery_inference.batch_policy import BatchPolicy
from servery_inference.batcher import Batcher
from servery_inference.costs import Costs
from servery_inference.engine import Engine
from servery_inference.execution import Execution
from servery_inference.options import ModelOptions
from servery_inference.queueing import Room
from servery_inference.sessions import open_engine
from servery_inference.statistics import ModelStatistics
from servery_inference.watchdog import Watchdog

NOTHING_IS_SHORT = -1
ALL_IS_SHORT = 1 << 20

POLICY = BatchPolicy(max_rows=8, preferred=frozenset({8}))

MakeBatcher = Callable[..., tuple[Batcher, ModelStatistics]]
"""Takes a graph, the size up to which runs are short, slots, and what bounds the queue."""


@contextmanager
def making_batchers(folder: Path) -> Iterator[MakeBatcher]:
    """Make batchers for the length of the block."""
    with Watchdog.watching() as watchdog, ThreadPoolExecutor(4) as executor:

        def make(
            graph: bytes, inline_size: int, slots: int = 2, room: Room | None = None
        ) -> tuple[Batcher, ModelStatistics]:
            engine = open_graph(folder, graph)
            return batcher_of(engine, watchdog, executor, POLICY, inline_size, slots, room)

        yield make


def open_graph(folder: Path, graph: bytes) -> Engine:
    (folder / "model.onnx").write_bytes(graph)
    return open_engine(folder / "model.onnx", ModelOptions())


def batcher_of(
    engine: Engine,
    watchdog: Watchdog,
    executor: Executor,
    policy: BatchPolicy,
    inline_size: int,
    slots: int = 2,
    room: Room | None = None,
) -> tuple[Batcher, ModelStatistics]:
    statistics = ModelStatistics()
    execution = Execution(engine, Costs(inline_size), watchdog, executor)
    outputs = list(engine.signature.outputs)
    room = room or Room(1000)
    return Batcher("m", outputs, execution, policy, statistics, room, slots), statistics
