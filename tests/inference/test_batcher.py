"""The batcher without a wire: any split of requests, and the order of answers."""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servery_inference.batch_policy import BatchPolicy
from servery_inference.batcher import Batcher
from servery_inference.costs import Costs
from servery_inference.engine import Engine
from servery_inference.execution import Execution
from servery_inference.options import ModelOptions
from servery_inference.queueing import QueuePolicy, QueueTimeoutError, Room
from servery_inference.request import Terms
from servery_inference.runner import Result
from servery_inference.sessions import open_engine
from servery_inference.statistics import ModelStatistics
from servery_inference.watchdog import Watchdog
from tests.inference import graphs

NOTHING_IS_SHORT = -1
ALL_IS_SHORT = 1 << 20


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Identity of FP32 [batch, width]."""
    return _engine(tmp_path_factory.mktemp("m"), graphs.identity("FP32", ("batch", "width")))


def _engine(folder: Path, graph: bytes) -> Engine:
    (folder / "model.onnx").write_bytes(graph)
    return open_engine(folder / "model.onnx", ModelOptions())


@pytest.fixture(scope="module")
def watchdog() -> Iterator[Watchdog]:
    with Watchdog.watching() as watchdog:
        yield watchdog


def _batcher(
    engine: Engine, watchdog: Watchdog, policy: BatchPolicy, inline_size: int, slots: int = 2
) -> tuple[Batcher, ModelStatistics]:
    statistics = ModelStatistics()
    execution = Execution(engine, Costs(inline_size), watchdog, ThreadPoolExecutor(2))
    outputs = list(engine.signature.outputs)
    return Batcher("m", outputs, execution, policy, statistics, Room(1000), slots), statistics


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    turns=st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.integers(1, 2)), min_size=1, max_size=8),
        max_size=6,
    ),
    max_rows=st.integers(5, 9),
    preferred=st.frozensets(st.integers(1, 9), max_size=3),
    delay_s=st.sampled_from([0.0, 0.001]),
    is_ordered=st.booleans(),
    inline_size=st.sampled_from([NOTHING_IS_SHORT, 4, ALL_IS_SHORT]),
)
def test_any_split_into_batches_gives_each_caller_its_own_answer(
    engine: Engine,
    watchdog: Watchdog,
    turns: Sequence[Sequence[tuple[int, int]]],
    max_rows: int,
    preferred: frozenset[int],
    delay_s: float,
    is_ordered: bool,
    inline_size: int,
) -> None:
    policy = BatchPolicy(max_rows, preferred, delay_s, is_ordered)

    async def ask_all() -> None:
        batcher, statistics = _batcher(engine, watchdog, policy, inline_size)
        number = 0
        asked, answers = [], []
        for turn in turns:
            for rows, width in turn:
                number += 1
                x = np.full((rows, width), number, np.float32)
                asked.append(x)
                answers.append(asyncio.ensure_future(batcher.run({"x": x}, ["y"], rows, x.size)))
            await asyncio.sleep(0)
        for x, result in zip(asked, await asyncio.gather(*answers), strict=True):
            assert result.values[0].tolist() == x.tolist()
            assert result.values[0].shape == x.shape
        assert statistics.pending == 0
        assert max(statistics.batches, default=0) <= max_rows

    asyncio.run(ask_all())


async def _order(batcher: Batcher, feeds: Sequence[tuple[graphs.Array, Terms]]) -> list[int]:
    """The positions of `feeds` in the order in which they are answered."""
    answered: list[int] = []

    async def ask(position: int) -> Result:
        x, terms = feeds[position]
        result = await batcher.run({"x": x}, ["y"], len(x), x.size, terms)
        answered.append(position)
        return result

    await asyncio.gather(*[ask(position) for position in range(len(feeds))])
    return answered


async def test_order_is_kept_where_it_counts(engine: Engine, watchdog: Watchdog) -> None:
    policy = BatchPolicy(max_rows=4, is_ordered=True)
    batcher, _ = _batcher(engine, watchdog, policy, NOTHING_IS_SHORT)
    sizes = [200_000, 1, 1, 100_000, 1, 1]
    feeds = [(np.zeros((1, size), np.float32), Terms()) for size in sizes]
    assert await _order(batcher, feeds) == [0, 1, 2, 3, 4, 5]


async def test_the_urgent_go_first_and_unknown_levels_are_the_default(
    engine: Engine, watchdog: Watchdog
) -> None:
    levels = (QueuePolicy(),) * 3
    policy = BatchPolicy(max_rows=1, levels=levels, default_level=2)
    batcher, _ = _batcher(engine, watchdog, policy, NOTHING_IS_SHORT, slots=1)
    x = np.zeros((1, 1), np.float32)
    feeds = [(x, Terms(priority=priority)) for priority in (3, 0, 9, 2, 1)]
    assert await _order(batcher, feeds) == [4, 1, 2, 3, 0]


async def test_late_requests_are_refused_or_served_last_as_the_policy_says(
    engine: Engine, watchdog: Watchdog
) -> None:
    x = np.zeros((1, 1), np.float32)
    delays = QueuePolicy(delays=True)
    policy = BatchPolicy(max_rows=8, preferred=frozenset({2}), delay_s=0.2, levels=(delays,))
    batcher, _ = _batcher(engine, watchdog, policy, NOTHING_IS_SHORT)
    assert await _order(batcher, [(x, Terms(timeout_us=1000))]) == [0]
    policy = BatchPolicy(max_rows=8, preferred=frozenset({2}), delay_s=30)
    batcher, statistics = _batcher(engine, watchdog, policy, NOTHING_IS_SHORT)
    with pytest.raises(QueueTimeoutError):
        await asyncio.wait_for(_order(batcher, [(x, Terms(timeout_us=1000))]), 5)
    assert statistics.pending == 0


async def test_a_graph_that_is_not_row_wise_still_answers_each_alone(
    tmp_path: Path, watchdog: Watchdog
) -> None:
    engine = _engine(tmp_path, graphs.first_row())
    policy = BatchPolicy(max_rows=8, preferred=frozenset({3}), delay_s=30)
    batcher, _ = _batcher(engine, watchdog, policy, ALL_IS_SHORT)
    xs = [np.full((1, 2), number, np.float32) for number in range(3)]
    results = await asyncio.gather(*[batcher.run({"x": x}, ["y"], 1, x.size) for x in xs])
    assert [result.values[0].tolist() for result in results] == [x.tolist() for x in xs]
