"""Graphs that nobody vouches for are opened in a throw-away process first, under limits."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from servery_inference.graph_walk import MAX_NODES, GraphRefusedError, walk
from servery_inference.serving import serving_inference
from servery_inference.settings import InferenceSettings
from tests.inference import graphs
from tests.inference.calling import answers, index, infer_request, stub
from tests.inference.conftest import WORKERS

X = np.zeros((1, 2), "<f4")


@asynccontextmanager
async def serve(root: Path, **settings: Any) -> AsyncIterator[grpc.aio.Channel]:
    given = InferenceSettings(model_repository=root, drain_s=0, workers=WORKERS, **settings)
    async with (
        serving_inference(given) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        await asyncio.wait_for(server.ready.wait(), 60)
        yield channel


async def test_a_directory_is_found_from_where_the_server_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs.store(tmp_path / "models", "simple", graphs.identity("FP32", ("batch", 2)))
    monkeypatch.chdir(tmp_path)
    async with serve(Path("models")) as channel:
        response = await stub(channel).ModelInfer(infer_request("simple", {"x": X}))
        assert answers(response)["y"].tobytes() == X.tobytes()


def custom(domain: str = "evil.domain") -> bytes:
    node = helper.make_node("Nope", ["x"], ["y"], domain=domain)
    shape = ("batch", 2)
    graph = helper.make_graph(
        [node], "g", [graphs.value("x", "FP32", shape)], [graphs.value("y", "FP32", shape)]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(domain, 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString())


def local_function() -> bytes:
    """`y` is `x` plus `x`, by a function of a domain of its own."""
    shape = ("batch", 2)
    twice = helper.make_function(
        "mine",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 18)],
    )
    node = helper.make_node("Twice", ["x"], ["y"], domain="mine")
    graph = helper.make_graph(
        [node], "g", [graphs.value("x", "FP32", shape)], [graphs.value("y", "FP32", shape)]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    made = helper.make_model(graph, opset_imports=opsets, functions=[twice], ir_version=8)
    return bytes(made.SerializeToString())


def bomb() -> bytes:
    """A constant of 4 GiB, folded when it is loaded."""
    shape = numpy_helper.from_array(np.array([1 << 30]), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    free = ("batch", 2)
    inputs, outputs = [graphs.value("x", "FP32", free)], [graphs.value("y", "FP32", free)]
    return graphs.model(nodes, inputs, outputs, [shape])


def many_nodes(count: int) -> bytes:
    nodes = [helper.make_node("Identity", [f"n{i}"], [f"n{i + 1}"]) for i in range(count)]
    inputs, outputs = [graphs.value("n0", "FP32", [1])], [graphs.value(f"n{count}", "FP32", [1])]
    return bytes(
        helper.make_model(helper.make_graph(nodes, "g", inputs, outputs)).SerializeToString()
    )


def external(location: str) -> bytes:
    model = onnx.ModelProto.FromString(graphs.plus(1))
    (weight,) = model.graph.initializer
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    return bytes(model.SerializeToString())


async def test_good_graphs_are_admitted_and_bad_ones_refused(tmp_path: Path) -> None:
    graphs.store(tmp_path, "plain", graphs.plus(1))
    graphs.store(tmp_path, "function", local_function())
    data = np.array([7, 7], "<f4").tobytes()
    graphs.store(tmp_path, "external", external("weights"), weights=data)
    bad = {
        "empty": b"",
        "garbage": b"not a graph",
        "cut": graphs.dense()[:1000],
        "custom": custom(),
        "bomb": bomb(),
        "parent": external("../weights"),
    }
    for name, graph in bad.items():
        graphs.store(tmp_path, name, graph)
    async with serve(tmp_path, admission_memory_bytes=2 << 30) as channel:
        listed = await index(channel)
        for name in ("plain", "function", "external"):
            assert listed[name, "1"] == ("READY", "")
            await stub(channel).ModelInfer(infer_request(name, {"x": X}))
        for name in bad:
            state, reason = listed[name, "1"]
            assert state == "UNAVAILABLE"
            assert reason.startswith("the graph ")
            assert str(tmp_path) not in reason


async def test_a_graph_that_takes_too_long_does_not_hold_up_the_server(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", many_nodes(90_000))
    graphs.store(tmp_path, "good", graphs.plus(1))
    async with serve(tmp_path, admission_wall_s=1) as channel:
        assert (await index(channel))["m", "1"][0] == "UNAVAILABLE"
        response = await stub(channel).ModelInfer(infer_request("good", {"x": X}))
        assert answers(response)["y"].tolist() == [[1, 1]]


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(many_nodes(MAX_NODES + 1), id="too many nodes"),
        pytest.param(custom(), id="a custom operator"),
        pytest.param(external("/etc/passwd"), id="an absolute path"),
        pytest.param(external("a/../../b"), id="a path that leads out"),
        pytest.param(b"\x38", id="a varint that breaks off"),
        pytest.param(b"\x3a\xff\xff\xff\xff\x0f", id="a length beyond the end"),
        pytest.param(b"\x3a" + b"\xff" * 12, id="a varint that does not end"),
        pytest.param(b"\x0b", id="a group"),
    ],
)
def test_the_walk_refuses(graph: bytes) -> None:
    with pytest.raises(GraphRefusedError):
        walk(memoryview(graph))


@given(st.binary(max_size=200))
def test_the_walk_survives_any_bytes(data: bytes) -> None:
    with contextlib.suppress(GraphRefusedError):
        walk(memoryview(b"\x3a" + bytes([len(data) & 0x7F]) + data))


def test_the_walk_finds_nodes_at_any_depth() -> None:
    facts = walk(memoryview(graphs.endless()))
    assert facts.operators == {("", "Squeeze"), ("", "Loop"), ("", "Identity")}
    assert facts.num_nodes == 4
