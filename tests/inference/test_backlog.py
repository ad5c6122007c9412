"""What is ahead of a request, and which requests are worth to begin."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servery_inference.backlog import Backlog
from servery_inference.batch import Batch
from servery_inference.batcher import Batcher
from servery_inference.costs import Costs
from servery_inference.queueing import (
    DeadlineUnreachableError,
    QueuePolicy,
    QueueTimeoutError,
    Room,
    Work,
    WorkQueue,
)
from servery_inference.request import Terms
from tests.inference import graphs
from tests.inference.batchers import NOTHING_IS_SHORT, MakeBatcher, making_batchers

SIZE = 100
RUN_S = 0.1
NOW = 1000.0
NOBODY: Any = None


@pytest.fixture
def make_batcher(tmp_path: Path) -> Iterator[MakeBatcher]:
    with making_batchers(tmp_path) as make:
        yield make


def queue_and_backlog(slots: int = 1) -> tuple[WorkQueue, Backlog]:
    queue = WorkQueue((QueuePolicy(), QueuePolicy()), Room(10))
    costs = Costs.of(NOTHING_IS_SHORT, [(SIZE, RUN_S)])
    return queue, Backlog(queue, costs, slots)


def work(left_s: float | None = None, level: int = 1) -> Work:
    deadline = None if left_s is None else NOW + left_s
    made = Work({}, [], 1, SIZE, 0, deadline, NOBODY)
    made.level, made.cost_s, made.since = level, RUN_S, NOW
    return made


def test_what_waits_and_what_runs_is_ahead_by_level() -> None:
    queue, backlog = queue_and_backlog()
    queue.put(work(level=1))
    queue.put(work(level=2))
    assert backlog.ahead_s(1, NOW) == pytest.approx(RUN_S)
    assert backlog.ahead_s(2, NOW) == pytest.approx(2 * RUN_S)
    running = Batch([work()], [], 1, SIZE)
    backlog.begin(running, NOW)
    assert backlog.ahead_s(1, NOW + RUN_S / 2) == pytest.approx(1.5 * RUN_S)
    assert backlog.ahead_s(1, NOW + 5 * RUN_S) == pytest.approx(RUN_S)
    backlog.end(running)
    assert backlog.pushback_ms(NOW) == pytest.approx(2000 * RUN_S, abs=1)


def test_slots_share_what_is_ahead() -> None:
    queue, backlog = queue_and_backlog(slots=4)
    queue.put(work())
    assert backlog.ahead_s(1, NOW) == pytest.approx(RUN_S / 4)


@pytest.mark.parametrize(
    ("ahead", "left_s", "expected"),
    [
        pytest.param(0, None, True, id="no deadline"),
        pytest.param(0, -0.01, False, id="over"),
        pytest.param(0, 0.9 * RUN_S, False, id="shorter than a run"),
        pytest.param(0, 1.1 * RUN_S, True, id="nothing ahead: just enough will do"),
        pytest.param(1, 2.1 * RUN_S, False, id="something ahead: just enough will not do"),
        pytest.param(1, 2.6 * RUN_S, True, id="something ahead, and time to spare"),
    ],
)
def test_deadlines_are_planned_with_care(ahead: int, left_s: float | None, expected: bool) -> None:
    queue, backlog = queue_and_backlog()
    for _ in range(ahead):
        queue.put(work())
    assert backlog.is_reachable(work(left_s), NOW) is expected


def test_waits_that_take_longer_than_the_runs_ahead_are_learned_from() -> None:
    queue, backlog = queue_and_backlog()
    queue.put(work())
    for _ in range(100):
        late = work()
        backlog.join(late, NOW)
        backlog.learn(late, NOW + 2 * RUN_S)
    assert backlog.ahead_s(1, NOW) == pytest.approx(2 * RUN_S, rel=0.01)


def test_nothing_is_learned_where_others_may_come_first_or_next_to_nothing_is_ahead() -> None:
    queue, backlog = queue_and_backlog()
    backlog.learn(work(), NOW + 1)
    tiny = work()
    backlog.join(tiny, NOW)
    backlog.learn(tiny, NOW + 1)
    queue.put(work())
    second = work(level=2)
    backlog.join(second, NOW)
    backlog.learn(second, NOW + 1)
    assert backlog.ahead_s(1, NOW) == pytest.approx(RUN_S)


async def _count(batcher: Batcher, deadline: float | None = None, terms: Terms = Terms()) -> None:  # noqa: B008
    x = np.array([400_000])
    await batcher.run({"x": x}, ["y"], 1, 1, terms, deadline)


async def test_what_runs_counts_and_a_refusal_says_when_to_come_back(
    make_batcher: MakeBatcher,
) -> None:
    batcher, statistics = make_batcher(graphs.patient(), NOTHING_IS_SHORT, slots=1)
    start = time.monotonic()
    await _count(batcher)
    took = time.monotonic() - start
    running = asyncio.ensure_future(_count(batcher))
    async with asyncio.timeout(10):
        while statistics.pending or running.done():  # noqa: ASYNC110  has no event
            await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(DeadlineUnreachableError) as late:
        await _count(batcher, time.monotonic() + 1.5 * took)
    with pytest.raises(QueueTimeoutError) as impatient:
        await _count(batcher, terms=Terms(timeout_us=int(took / 20 * 1e6)))
    for caught in (late, impatient):
        assert caught.value.retry_after_ms is not None
        assert caught.value.retry_after_ms >= 1
    assert statistics.execution_count == 1
    await running


async def test_of_too_many_as_many_are_answered_as_can_be(make_batcher: MakeBatcher) -> None:
    batcher, _ = make_batcher(graphs.patient(), NOTHING_IS_SHORT, slots=1)
    start = time.monotonic()
    await _count(batcher)
    took = time.monotonic() - start
    asked = [asyncio.ensure_future(_count(batcher, start + 10 * took)) for _ in range(40)]
    done = await asyncio.gather(*asked, return_exceptions=True)
    answered = sum(each is None for each in done)
    assert all(each is None or isinstance(each, DeadlineUnreachableError) for each in done)
    assert 0 < answered < 20
