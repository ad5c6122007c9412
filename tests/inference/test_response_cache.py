"""Answers from memory: only to equal requests, and only as much as fits."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

from pathlib import Path

import numpy as np
import pytest

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.response_cache import ResponseCache, digest_of
from tests.inference import graphs
from tests.inference.calling import answers, infer_request, stub
from tests.inference.conftest import serve_directory

CACHED = "max_batch_size: 8 response_cache { enable: true }"


async def test_an_equal_request_is_answered_without_a_run(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.add_and_subtract())
    graphs.configure(tmp_path, "m", CACHED)
    a = np.arange(16, dtype="<i4").reshape(1, 16)
    async with serve_directory(tmp_path, response_cache_bytes=1 << 20) as channel:
        for request, expected in [
            (infer_request("m", {"a": a, "b": a}), {"sum": a + a, "difference": a - a}),
            (infer_request("m", {"b": a, "a": a}), {"sum": a + a, "difference": a - a}),
            (infer_request("m", {"a": a, "b": a}, ["sum"]), {"sum": a + a}),
            (infer_request("m", {"a": a + 1, "b": a}, ["sum"]), {"sum": a + a + 1}),
            (infer_request("m", {"a": a, "b": a}, ["sum"], id="x"), {"sum": a + a}),
        ]:
            got = answers(await stub(channel).ModelInfer(request))
            assert {k: v.tolist() for k, v in got.items()} == {
                k: v.tolist() for k, v in expected.items()
            }
        response = await stub(channel).ModelStatistics(pb.ModelStatisticsRequest(name="m"))
        (statistics,) = response.model_stats
        assert statistics.execution_count == 3
        assert statistics.inference_stats.cache_hit.count == 2
        assert statistics.inference_stats.cache_miss.count == 3
        assert statistics.inference_stats.success.count == 5


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.zeros((2, 1), "<f4")},
        {"x": np.zeros((1, 3), "<f4")},
        {"y": np.zeros((1, 2), "<f4")},
        {"x": np.array([["", "a"]], object)},
        {"x": np.array([["a", ""]], object)},
    ],
    ids=str,
)
def test_other_inputs_have_other_digests(other: dict[str, graphs.Array]) -> None:
    plain = digest_of({"x": np.zeros((1, 2), "<f4")}, ["y"])
    assert digest_of(other, ["y"]) != plain
    assert digest_of(other, ["y"]) == digest_of({k: v.copy() for k, v in other.items()}, ["y"])


def test_the_answers_used_last_stay_within_the_bound() -> None:
    cache = ResponseCache(100)
    owner = object()
    for key in (b"a", b"b", b"a", b"c"):
        if cache.get((owner, key)) is None:
            cache.put((owner, key), [np.zeros(10, "<f4")])
    assert cache.num_bytes == 80
    assert cache.get((owner, b"a")) is not None
    assert cache.get((owner, b"b")) is None
    cache.put((owner, b"large"), [np.zeros(26, "<f4")])
    assert cache.get((owner, b"large")) is None
    cache.drop(owner)
    assert cache.num_bytes == 0
