"""ModelStatistics through the wire: what is counted, and as what."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.statistics import BOUNDS_S, Histogram
from tests.inference import graphs
from tests.inference.calling import claims, failure, index, infer_request, stub
from tests.inference.conftest import serve_directory

STAGES = ("queue", "compute_input", "compute_infer", "compute_output")


async def statistics(channel: grpc.aio.Channel, name: str, version: str = "") -> pb.ModelStatistics:
    request = pb.ModelStatisticsRequest(name=name, version=version)
    (found,) = (await stub(channel).ModelStatistics(request)).model_stats
    return found


async def infer(channel: grpc.aio.Channel, rows: int) -> pb.ModelInferResponse:
    a = np.zeros((rows, 16), "<i4")
    return await stub(channel).ModelInfer(infer_request("simple", {"a": a, "b": a}))


async def test_a_model_that_never_ran_has_zeros_and_a_version(channel: grpc.aio.Channel) -> None:
    found = await statistics(channel, "simple")
    assert (found.name, found.version) == ("simple", "1")
    assert (found.last_inference, found.inference_count, found.execution_count) == (0, 0, 0)
    assert found.inference_stats.queue.count == 0
    assert not found.batch_stats


async def test_requests_rows_runs_and_failures_are_counted_apart(channel: grpc.aio.Channel) -> None:
    before_ms = time.time_ns() // 1_000_000
    for rows in (1, 3, 3):
        await infer(channel, rows)
    await failure(
        stub(channel).ModelInfer(infer_request("simple", {"a": np.zeros((1, 16), "<i4")}))
    )
    found = await statistics(channel, "simple", "1")
    stages = found.inference_stats
    assert (stages.success.count, stages.fail.count) == (3, 1)
    assert [getattr(stages, stage).count for stage in STAGES] == [3, 3, 3, 3]
    assert stages.success.ns >= sum(getattr(stages, stage).ns for stage in STAGES) > 0
    assert stages.fail.ns > 0
    assert (stages.cache_hit.count, stages.cache_miss.count) == (0, 0)
    assert (found.inference_count, found.execution_count) == (7, 3)
    by_rows = {batch.batch_size: batch.compute_infer.count for batch in found.batch_stats}
    assert by_rows == {1: 1, 3: 2}
    assert sum(b.compute_infer.ns for b in found.batch_stats) == stages.compute_infer.ns
    assert before_ms <= found.last_inference <= time.time_ns() // 1_000_000


async def test_what_a_version_is_accounted_with_is_told(root: Path) -> None:
    graphs.store(root, "twice", graphs.dense())
    graphs.configure(root, "twice", "instance_group { count: 2 }")
    async with serve_directory(root) as channel:
        (usage,) = (await statistics(channel, "dense")).memory_usage
        assert (usage.type, usage.id) == ("CPU", 0)
        assert usage.byte_size >= (root / "dense" / "1" / "model.onnx").stat().st_size
        (shared,) = (await statistics(channel, "twice")).memory_usage
        assert shared.byte_size == usage.byte_size  # Instances share a session.


async def test_no_name_means_every_model(channel: grpc.aio.Channel) -> None:
    response = await stub(channel).ModelStatistics(pb.ModelStatisticsRequest())
    assert {found.name for found in response.model_stats} == {
        model for model, _ in await index(channel)
    }


@pytest.mark.parametrize(
    ("name", "version", "text"),
    [
        ("nope", "", "requested model 'nope' is not available"),
        ("simple", "9", "requested model version is not available for model 'simple'"),
        ("simple", "abc", "failed to get model version from specified version string 'abc'"),
    ],
)
async def test_what_is_not_loaded_is_an_invalid_argument(
    channel: grpc.aio.Channel, name: str, version: str, text: str
) -> None:
    error = await failure(statistics(channel, name, version))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert text in str(error)  # Clients of Triton compare it.


async def test_statistics_hide_what_a_caller_may_not_see(tmp_path: Path) -> None:
    for name in ("acme.plus", "acme.minus", "plus"):
        graphs.store(tmp_path, name, graphs.plus(1))
    async with serve_directory(tmp_path) as channel:
        metadata = claims("acme", read=["pl*"])
        response = await stub(channel).ModelStatistics(
            pb.ModelStatisticsRequest(), metadata=metadata
        )
        assert [found.name for found in response.model_stats] == ["acme.plus"]
        request = pb.ModelStatisticsRequest(name="acme.minus")
        error = await failure(stub(channel).ModelStatistics(request, metadata=metadata))
        assert error.code is grpc.StatusCode.PERMISSION_DENIED


async def test_trailing_metadata_tells_where_the_time_went(channel: grpc.aio.Channel) -> None:
    request = infer_request("identity_fp32", {"x": np.zeros((1, 2), "<f4")})
    call = stub(channel).ModelInfer(request, metadata=[("servery-timing", "1")])
    await call
    timing = dict(await call.trailing_metadata())["servery-timing"]
    parts = dict(part.split(";us=") for part in str(timing).split(", "))
    assert list(parts) == list(STAGES)
    assert all(float(us) >= 0 for us in parts.values())
    silent = stub(channel).ModelInfer(request)
    await silent
    assert "servery-timing" not in dict(await silent.trailing_metadata())


def test_a_histogram_counts_up_to_each_bound() -> None:
    histogram = Histogram()
    for ns in (0, 100_000, 100_001, 10**12):
        histogram.add(ns)
    assert histogram.cumulative()[:2] == [2, 3]
    assert histogram.cumulative()[-2:] == [3, 4]
    assert len(histogram.cumulative()) == len(BOUNDS_S) + 1
