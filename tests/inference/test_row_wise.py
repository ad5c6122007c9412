"""Requests share runs only of graphs that keep their rows apart, unless somebody says otherwise."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.golden import Golden
from servery_inference.row_wise import mixing
from tests.inference import graphs
from tests.inference.batchers import open_graph
from tests.inference.calling import answers, infer_request, stub
from tests.inference.conftest import serve_directory


def single(operator: str, shape: tuple[str | int, ...] = ("batch", 4), **attributes: Any) -> bytes:
    """`y` is one operator of `x` FP32."""
    node = helper.make_node(operator, ["x"], ["y"], **attributes)
    return graphs.model(
        [node], [graphs.value("x", "FP32", shape)], [graphs.value("y", "FP32", shape)]
    )


def less_the_mean(datatype: str = "FP32") -> bytes:
    """`y` is `x` less the mean of all rows."""
    axes = numpy_helper.from_array(np.array([0]), "axes")
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    io = [graphs.value(name, datatype, ("batch", 4)) for name in "xy"]
    return graphs.model(nodes, io[:1], io[1:], [axes])


@pytest.mark.parametrize(
    ("graph", "is_row_wise"),
    [
        *[
            pytest.param(graphs.identity(datatype), True, id=datatype)
            for datatype in graphs.ONNX_TYPES
            if datatype != "FP8"
        ],
        pytest.param(graphs.dense(), True, id="sums in another order"),
        pytest.param(graphs.pick(), True, id="a table of three rows"),
        pytest.param(graphs.at_least_two_columns(), True, id="a free axis that must not be 1"),
        pytest.param(single("Softmax", axis=1), True, id="softmax of each row"),
        pytest.param(single("GlobalAveragePool", ("n", 3, "h", "w")), True, id="free sides"),
        pytest.param(single("Softmax", axis=0), False, id="softmax over the rows"),
        pytest.param(less_the_mean(), False, id="mean of the rows"),
        pytest.param(less_the_mean("FP16"), False, id="mean of the rows, coarse"),
        pytest.param(graphs.first_row(), False, id="fewer rows"),
        pytest.param(single("RandomNormalLike"), False, id="another answer every time"),
    ],
)
def test_rows_that_know_of_each_other_are_found(
    tmp_path: Path, graph: bytes, is_row_wise: bool
) -> None:
    assert (mixing(open_graph(tmp_path, graph), None) == "") is is_row_wise


def test_real_rows_are_taken_where_there_are_any(tmp_path: Path) -> None:
    engine = open_graph(tmp_path, less_the_mean())
    same = np.ones((5, 4), np.float32)
    real = np.arange(20, dtype=np.float32).reshape(5, 4)
    for rows, tolerance, is_fine in ((real, 0.0, False), (real, 1e9, True), (same, 0.0, False)):
        proof = Golden({"x": rows}, {"y": rows}, tolerance)
        assert (mixing(engine, proof) == "") is is_fine


async def test_a_model_that_mixes_rows_answers_each_request_alone(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", less_the_mean())
    graphs.store(tmp_path, "told", less_the_mean())
    graphs.configure(tmp_path, "told", "max_batch_size: 8 dynamic_batching {}")
    async with serve_directory(tmp_path) as channel:
        x = np.arange(8, dtype="<f4").reshape(2, 4)
        asked = [stub(channel).ModelInfer(infer_request("m", {"x": x * i})) for i in range(20)]
        for i, response in enumerate(await asyncio.gather(*asked)):
            assert np.allclose(answers(response)["y"], [[-2 * i] * 4, [2 * i] * 4])
        configs = {
            name: (await stub(channel).ModelConfig(pb.ModelConfigRequest(name=name))).config
            for name in ("m", "told")
        }
        assert (configs["m"].max_batch_size, configs["told"].max_batch_size) == (0, 8)
        assert not configs["m"].HasField("dynamic_batching")
        metadata = await stub(channel).ModelMetadata(pb.ModelMetadataRequest(name="m"))
        assert list(metadata.inputs[0].shape) == [-1, 4]
