"""Requests that cannot wait: timeouts, deadlines, and callers who leave."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.batcher import Batcher
from servery_inference.cores import usable_cores
from servery_inference.queueing import DeadlineUnreachableError, QueueFullError, Room
from tests.inference import graphs
from tests.inference.batchers import (
    ALL_IS_SHORT,
    NOTHING_IS_SHORT,
    MakeBatcher,
    making_batchers,
)
from tests.inference.calling import answers, failure, infer_request, stub
from tests.inference.conftest import serve_directory

ENDLESS = 2**62
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
LONG_S = 30


@pytest.fixture
def make_batcher(tmp_path: Path) -> Iterator[MakeBatcher]:
    with making_batchers(tmp_path) as make:
        yield make


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  what it waits for has no event
            await asyncio.sleep(0)


def count_to(number: int, **parameters: int) -> pb.ModelInferRequest:
    request = infer_request("patient", {"x": np.array([number])})
    for key, value in parameters.items():
        request.parameters[key].int64_param = value
    return request


@asynccontextmanager
async def busy(root: Path, config: str = "max_batch_size: 0") -> AsyncIterator[grpc.aio.Channel]:
    """Serve a model whose every place is taken by a run without end."""
    graphs.store(root, "patient", graphs.patient())
    graphs.configure(root, "patient", config)
    async with serve_directory(root) as channel:
        await stub(channel).ModelInfer(count_to(1))
        calls: list[Any] = [
            stub(channel).ModelInfer(count_to(ENDLESS)) for _ in range(usable_cores())
        ]
        try:
            yield channel
        finally:
            for call in calls:
                call.cancel()


async def test_a_timeout_ends_the_wait_in_the_queue_without_any_config(tmp_path: Path) -> None:
    async with busy(tmp_path) as channel:
        error = await failure(
            stub(channel).ModelInfer(count_to(1, timeout=400_000), timeout=LONG_S)
        )
        assert (error.code, error.reason) == (UNAVAILABLE, "ERROR_REASON_QUEUE_TIMEOUT")


async def test_a_timeout_does_not_touch_what_runs(tmp_path: Path) -> None:
    graphs.store(tmp_path, "patient", graphs.patient())
    async with serve_directory(tmp_path) as channel:
        request = count_to(300_000, timeout=1000)
        assert answers(await stub(channel).ModelInfer(request))["y"] == [300_000]


async def test_the_wait_that_the_config_allows_ends_too(tmp_path: Path) -> None:
    config = (
        "max_batch_size: 1 dynamic_batching {"
        " default_queue_policy { default_timeout_microseconds: 300000 } }"
    )
    async with busy(tmp_path, config) as channel:
        error = await failure(stub(channel).ModelInfer(count_to(1), timeout=LONG_S))
        assert (error.code, error.reason) == (UNAVAILABLE, "ERROR_REASON_QUEUE_TIMEOUT")


async def test_callers_who_leave_make_room(tmp_path: Path) -> None:
    async with busy(tmp_path) as channel:
        calls: list[Any] = [stub(channel).ModelInfer(count_to(ENDLESS)) for _ in range(50)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended)
    async with serve_directory(tmp_path) as channel:
        assert answers(await stub(channel).ModelInfer(count_to(1), timeout=LONG_S))


async def test_a_batch_that_everyone_left_ends_and_not_before(make_batcher: MakeBatcher) -> None:
    batcher, statistics = make_batcher(graphs.patient(), NOTHING_IS_SHORT, slots=1)
    first, second = [asyncio.ensure_future(_count(batcher, ENDLESS)) for _ in range(2)]
    await until(lambda: statistics.pending == 2)
    await until(lambda: statistics.pending == 0)
    first.cancel()
    last = asyncio.ensure_future(_count(batcher, 1))
    await until(lambda: first.done() and statistics.pending == 1)
    assert not second.done()
    second.cancel()
    assert (await asyncio.wait_for(last, 10)).tolist() == [1]


async def test_a_deadline_ends_the_wait_in_the_queue(make_batcher: MakeBatcher) -> None:
    batcher, statistics = make_batcher(graphs.patient(), NOTHING_IS_SHORT, slots=1)
    forever = asyncio.ensure_future(_count(batcher, ENDLESS))
    await until(lambda: statistics.pending == 1)
    await until(lambda: statistics.pending == 0)
    with pytest.raises(DeadlineUnreachableError):
        await asyncio.wait_for(_count(batcher, 1, time.monotonic() + 0.05), 10)
    assert statistics.pending == 0
    forever.cancel()


@pytest.mark.parametrize("inline_size", [NOTHING_IS_SHORT, ALL_IS_SHORT])
async def test_what_is_known_to_take_too_long_is_refused_at_once(
    make_batcher: MakeBatcher, inline_size: int
) -> None:
    batcher, statistics = make_batcher(graphs.patient(), inline_size)
    start = time.monotonic()
    await _count(batcher, 400_000)
    took = time.monotonic() - start
    runs = statistics.execution_count
    with pytest.raises(DeadlineUnreachableError):
        await _count(batcher, 1, time.monotonic() + took / 20)
    assert statistics.execution_count == runs
    await _count(batcher, 1, time.monotonic() + LONG_S)


async def test_a_call_that_is_over_does_not_run(make_batcher: MakeBatcher) -> None:
    batcher, statistics = make_batcher(graphs.patient(), ALL_IS_SHORT)
    with pytest.raises(DeadlineUnreachableError):
        await _count(batcher, 1, time.monotonic() - 1)
    assert statistics.execution_count == 0


async def test_the_process_has_a_limit_of_its_own(make_batcher: MakeBatcher) -> None:
    room = Room(3)
    batchers = [make_batcher(graphs.patient(), NOTHING_IS_SHORT, 1, room) for _ in range(2)]
    running = [asyncio.ensure_future(_count(batcher, ENDLESS)) for batcher, _ in batchers]
    await until(lambda: sum(statistics.pending for _, statistics in batchers) == 2)
    await until(lambda: sum(statistics.pending for _, statistics in batchers) == 0)
    waiting = [asyncio.ensure_future(_count(batchers[i % 2][0], 1)) for i in range(3)]
    await until(lambda: room.taken == 3)
    start = time.monotonic()
    with pytest.raises(QueueFullError):
        await _count(batchers[0][0], 1)
    assert time.monotonic() - start < 1
    for task in (*running, *waiting):
        task.cancel()
    await asyncio.wait((*running, *waiting))
    assert room.taken == 0


async def _count(batcher: Batcher, number: int, deadline: float | None = None) -> graphs.Array:
    x = np.array([number])
    result = await batcher.run({"x": x}, ["y"], 1, 1, deadline=deadline)
    return result.values[0]
