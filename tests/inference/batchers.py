"""Batchers of small graphs, without a server around them."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from servery.inference.v1 import model_config_pb2 as pb
from servery_inference.batch_policy import BatchPolicy
from servery_inference.batcher import Batcher
from servery_inference.costs import Costs
from servery_inference.engine import Engine
from servery_inference.execution import Execution
from servery_inference.options import ModelOptions
from servery_inference.queueing import Room
from servery_inference.servable import Servable
from servery_inference.sessions import open_engine
from servery_inference.statistics import ModelStatistics
from servery_inference.watchdog import Watchdog
from tests.inference import graphs

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


@contextmanager
def plus_servable(folder: Path) -> Iterator[Servable]:
    """Make version 3 of `m`, which adds 1 to `x` FP32 [batch, 2], for the length of the block."""
    config = pb.ModelConfig(
        name="m",
        max_batch_size=POLICY.max_rows,
        input=[pb.ModelInput(name="x", data_type=pb.TYPE_FP32, dims=[2])],
        output=[pb.ModelOutput(name="y", data_type=pb.TYPE_FP32, dims=[2])],
    )
    with making_batchers(folder) as make:
        batcher, _ = make(graphs.plus(1), ALL_IS_SHORT)
        yield Servable("m", 3, config, {}, lambda _: batcher)
