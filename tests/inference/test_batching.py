"""Dynamic batching through a real channel: who shares a run, and that nobody notices."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from servery.inference.v1 import grpc_service_pb2 as pb
from tests.inference import graphs
from tests.inference.calling import answers, failure, infer_request, stub
from tests.inference.conftest import serve_directory

FOUR_TOGETHER = "dynamic_batching { preferred_batch_size: [4] %s max_queue_delay_microseconds: %d }"
NEVER_US = 60_000_000
SOON_US = 100_000


@asynccontextmanager
async def serving(
    root: Path, graph: bytes, delay_us: int = NEVER_US, more: str = "", max_batch_size: int = 8
) -> AsyncIterator[grpc.aio.Channel]:
    """Serve one model `m` that runs at 4 rows, or after a delay."""
    graphs.store(root, "m", graph)
    batching = FOUR_TOGETHER % (more, delay_us)
    graphs.configure(root, "m", f"max_batch_size: {max_batch_size} {batching}")
    async with serve_directory(root) as channel:
        yield channel


async def runs(channel: grpc.aio.Channel) -> dict[int, int]:
    """How often the model ran on each number of rows."""
    response = await stub(channel).ModelStatistics(pb.ModelStatisticsRequest(name="m"))
    (statistics,) = response.model_stats
    return {batch.batch_size: batch.compute_infer.count for batch in statistics.batch_stats}


async def together(channel: grpc.aio.Channel, *requests: pb.ModelInferRequest) -> list[Any]:
    calls = [stub(channel).ModelInfer(request, timeout=30) for request in requests]
    return list(await asyncio.gather(*calls))


async def test_requests_that_reach_a_preferred_size_run_at_once(tmp_path: Path) -> None:
    xs = [np.full((rows, 2), rows, "<f4") for rows in (1, 2, 1)]
    async with serving(tmp_path, graphs.plus(1)) as channel:
        got = await together(channel, *[infer_request("m", {"x": x}) for x in xs])
        assert [answers(response)["y"].tolist() for response in got] == [
            (x + 1).tolist() for x in xs
        ]
        assert await runs(channel) == {4: 1}


async def test_what_does_not_reach_a_preferred_size_runs_after_the_delay(tmp_path: Path) -> None:
    x = np.zeros((1, 2), "<f4")
    async with serving(tmp_path, graphs.plus(1), SOON_US) as channel:
        await together(channel, *[infer_request("m", {"x": x})] * 3)
        assert await runs(channel) == {3: 1}


async def test_no_batch_is_larger_than_the_largest(tmp_path: Path) -> None:
    x = np.zeros((3, 2), "<f4")
    async with serving(tmp_path, graphs.plus(1), SOON_US, max_batch_size=5) as channel:
        await together(channel, *[infer_request("m", {"x": x})] * 3)
        assert await runs(channel) == {3: 3}


async def test_without_a_delay_every_request_is_answered_at_once(tmp_path: Path) -> None:
    x = np.zeros((1, 2), "<f4")
    async with serving(tmp_path, graphs.plus(1), 0) as channel:
        for _ in range(3):
            await together(channel, *[infer_request("m", {"x": x})] * 5)
        assert sum(size * count for size, count in (await runs(channel)).items()) == 15


async def test_rows_of_different_shapes_do_not_share_a_run(tmp_path: Path) -> None:
    xs = [np.full((1, width), width, "<f4") for width in (2, 3, 2, 3)]
    async with serving(tmp_path, graphs.identity("FP32", ("batch", "width")), SOON_US) as channel:
        got = await together(channel, *[infer_request("m", {"x": x}) for x in xs])
        assert [answers(response)["y"].tolist() for response in got] == [x.tolist() for x in xs]
        assert await runs(channel) == {2: 2}


async def test_a_request_that_the_graph_refuses_fails_alone(tmp_path: Path) -> None:
    async with serving(tmp_path, graphs.pick()) as channel:
        good = [infer_request("m", {"x": np.array([row])}) for row in (0, 1, 2)]
        bad = infer_request("m", {"x": np.array([7])})
        error, *got = await asyncio.gather(
            failure(stub(channel).ModelInfer(bad)), *[together(channel, each) for each in good]
        )
        assert error.reason == "ERROR_REASON_INFERENCE_REQUEST_INVALID"
        assert [answers(response)["y"].tolist() for (response,) in got] == [[0], [1], [2]]


async def test_each_gets_the_outputs_it_wants(tmp_path: Path) -> None:
    a = np.ones((1, 16), "<i4")
    wanted: list[list[str]] = [["sum"], ["difference"], [], ["difference", "sum"]]
    async with serving(tmp_path, graphs.add_and_subtract()) as channel:
        got = await together(
            channel, *[infer_request("m", {"a": a * i, "b": a}, w) for i, w in enumerate(wanted)]
        )
        values = [{k: v[0, 0] for k, v in answers(response).items()} for response in got]
        assert values == [
            {"sum": 1},
            {"difference": 0},
            {"sum": 3, "difference": 1},
            {"sum": 4, "difference": 2},
        ]
        assert await runs(channel) == {4: 1}


async def test_texts_are_joined_too(tmp_path: Path) -> None:
    xs = [np.array([[text, ""]], object) for text in ("", "é", "a\0", "x" * 100)]
    async with serving(tmp_path, graphs.identity("BYTES")) as channel:
        got = await together(channel, *[infer_request("m", {"x": x}) for x in xs])
        texts = [answers(response)["y"][0, 0].decode() for response in got]
        assert texts == [x[0, 0] for x in xs]
        assert await runs(channel) == {4: 1}


@pytest.mark.parametrize("reason", ["the model's limit", "the level's limit"])
async def test_one_too_many_in_the_queue_is_refused_at_once(tmp_path: Path, reason: str) -> None:
    more = "default_queue_policy { max_queue_size: 2 }"
    if reason == "the level's limit":
        more = (
            "priority_levels: 2 default_priority_level: 1"
            " priority_queue_policy { key: 2 value { max_queue_size: 2 } }"
        )
    request = infer_request("m", {"x": np.zeros((1, 2), "<f4")})
    request.parameters["priority"].int64_param = 2
    async with serving(tmp_path, graphs.plus(1), NEVER_US, more) as channel:
        calls: list[Any] = [stub(channel).ModelInfer(request) for _ in range(3)]
        done, waiting = await asyncio.wait(
            [asyncio.ensure_future(_ended(call)) for call in calls],
            timeout=10,
            return_when=asyncio.FIRST_COMPLETED,
        )
        (refused,) = [task.result() for task in done]
        error = await failure(refused)
        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert error.reason == "ERROR_REASON_QUEUE_FULL"
        assert "grpc-retry-pushback-ms" in dict(list(await refused.trailing_metadata()))
        for call in calls:
            call.cancel()
        await asyncio.wait(waiting, timeout=10)


async def _ended(call: Any) -> Any:
    await call.code()
    return call


async def test_any_split_of_a_stream_gives_what_each_would_get_alone(
    tmp_path: Path,
) -> None:
    random = np.random.default_rng(7)
    asked = 0
    async with serving(tmp_path, graphs.add_and_subtract(), 2_000) as channel:
        for _ in range(20):
            rows = random.integers(0, 8, random.integers(1, 24), endpoint=True)
            pairs = [random.integers(-(2**31), 2**31, (2, n, 16), "<i4") for n in rows]
            got = await together(channel, *[infer_request("m", {"a": a, "b": b}) for a, b in pairs])
            asked += len(pairs)
            for (a, b), response in zip(pairs, got, strict=True):
                assert (answers(response)["sum"] == a + b).all()
                assert (answers(response)["difference"] == a - b).all()
        sizes = await runs(channel)
        assert max(sizes) <= 8
        assert sum(sizes.values()) < asked
