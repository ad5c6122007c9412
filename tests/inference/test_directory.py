"""Serving a directory: which versions are found, and what is made of bad ones."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

from pathlib import Path

import numpy as np
import pytest

from servery.inference.v1 import grpc_service_pb2 as pb
from tests.inference import graphs
from tests.inference.calling import answers, failure, index, infer_request, stub
from tests.inference.conftest import serve_directory

X = np.zeros((1, 2), "<f4")


async def test_the_newest_version_serves(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        graphs.store(tmp_path, "m", graphs.plus(number), number)
    async with serve_directory(tmp_path) as channel:
        response = await stub(channel).ModelInfer(infer_request("m", {"x": X}))
        assert response.model_version == "10"
        assert (answers(response)["y"] == 10).all()
        assert await index(channel) == {("m", "10"): ("READY", "")}


async def test_what_is_no_version_is_passed_over(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    for name in ("03", "-4", "x", "٥", "0", "1" * 30):
        graphs.store(tmp_path, "m", b"", name)
    (tmp_path / "m" / "7").write_bytes(b"a file")
    (tmp_path / ".hidden" / "1").mkdir(parents=True)
    (tmp_path / "README").write_bytes(b"a file")
    async with serve_directory(tmp_path) as channel:
        assert await index(channel) == {("m", "1"): ("READY", "")}


async def test_a_model_without_versions_is_listed_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    async with serve_directory(tmp_path) as channel:
        assert await index(channel) == {("empty", ""): ("", "")}
        error = await failure(stub(channel).ModelInfer(infer_request("empty", {"x": X})))
        assert error.message == "Request for unknown model: 'empty' has no available versions"


def truncated() -> bytes:
    return graphs.dense()[:1000]


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not a graph", id="garbage"),
        pytest.param(truncated(), id="cut off"),
        pytest.param(graphs.identity("FP8"), id="a type that cannot travel"),
    ],
)
async def test_a_bad_graph_is_unavailable_with_a_reason_and_the_others_serve(
    tmp_path: Path, graph: bytes
) -> None:
    graphs.store(tmp_path, "bad", graph)
    graphs.store(tmp_path, "good", graphs.plus(1))
    async with serve_directory(tmp_path) as channel:
        state, reason = (await index(channel))[("bad", "1")]
        assert state == "UNAVAILABLE"
        assert reason
        assert str(tmp_path) not in reason
        await stub(channel).ModelInfer(infer_request("good", {"x": X}))
        only_ready = await stub(channel).RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
        assert [m.name for m in only_ready.models] == ["good"]


async def test_a_folder_without_a_graph_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    async with serve_directory(tmp_path) as channel:
        assert (await index(channel))[("m", "1")][0] == "UNAVAILABLE"


async def test_golden_rows_are_checked_where_there_are_some(tmp_path: Path) -> None:
    for name, golden in (("good", 1.0), ("bad", 1.01)):
        files = graphs.plus_bundle(1, golden=golden)
        graphs.store(tmp_path, name, files["model.onnx"], golden_npz=files["golden.npz"])
    async with serve_directory(tmp_path) as channel:
        listed = await index(channel)
        assert listed[("good", "1")] == ("READY", "")
        assert listed[("bad", "1")][0] == "UNAVAILABLE"
        assert "golden row" in listed[("bad", "1")][1]


async def test_a_graph_that_refuses_zeros_serves_unwarmed(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.at_least_two_columns())
    async with serve_directory(tmp_path) as channel:
        response = await stub(channel).ModelInfer(infer_request("m", {"x": X}))
        assert answers(response)["y"].shape == (1, 1)
