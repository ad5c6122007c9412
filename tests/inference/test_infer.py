"""ModelInfer through a real channel: every datatype there and back."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest

from servery.inference.v1 import grpc_service_pb2 as pb
from tests.inference import graphs
from tests.inference.calling import DTYPES, answers, failure, infer_request, stub
from tests.inference.conftest import serve_directory

Tensor = pb.ModelInferRequest.InferInputTensor

EDGES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "FP16": [float("nan"), -65504],
    "FP32": [float("inf"), float("nan")],
    "FP64": [-0.0, 1e308],
}


def edges(datatype: str) -> graphs.Array:
    dtype = np.dtype(DTYPES[datatype])
    if datatype in EDGES:
        return np.array([EDGES[datatype]], dtype)
    return np.array([[np.iinfo(dtype).min, np.iinfo(dtype).max]], dtype)


@pytest.mark.parametrize("datatype", DTYPES)
async def test_numbers_come_back_bit_for_bit(channel: grpc.aio.Channel, datatype: str) -> None:
    x = edges(datatype)
    model = f"identity_{datatype.lower()}"
    response = await stub(channel).ModelInfer(infer_request(model, {"x": x}))
    assert answers(response)["y"].tobytes() == x.tobytes()
    assert response.outputs[0].datatype == datatype
    assert list(response.outputs[0].shape) == [1, 2]


@pytest.mark.parametrize(
    ("datatype", "field", "values", "expected"),
    [
        ("BOOL", "bool_contents", [True, False], [True, False]),
        ("UINT8", "uint_contents", [255, 257], [255, 1]),
        ("UINT16", "uint_contents", [65535, 65536], [65535, 0]),
        ("UINT32", "uint_contents", [1, 2**32 - 1], [1, 2**32 - 1]),
        ("UINT64", "uint64_contents", [1, 2**64 - 1], [1, 2**64 - 1]),
        ("INT8", "int_contents", [-128, 128], [-128, -128]),
        ("INT16", "int_contents", [-1, 40000], [-1, 40000 - 65536]),
        ("INT32", "int_contents", [-(2**31), 5], [-(2**31), 5]),
        ("INT64", "int64_contents", [-(2**63), 5], [-(2**63), 5]),
        ("FP32", "fp32_contents", [0.5, float("inf")], [0.5, float("inf")]),
        ("FP64", "fp64_contents", [0.1, 1e308], [0.1, 1e308]),
        ("BYTES", "bytes_contents", [b"", "é".encode()], [b"", "é".encode()]),
    ],
)
async def test_typed_contents_are_taken_and_raw_ones_given(
    channel: grpc.aio.Channel, datatype: str, field: str, values: list[Any], expected: list[Any]
) -> None:
    contents: Any = {field: values}
    tensor = Tensor(
        name="x", datatype=datatype, shape=[1, 2], contents=pb.InferTensorContents(**contents)
    )
    request = pb.ModelInferRequest(model_name=f"identity_{datatype.lower()}", inputs=[tensor])
    response = await stub(channel).ModelInfer(request)
    assert answers(response)["y"].tolist() == [expected]
    assert not response.outputs[0].HasField("contents")


async def test_texts_come_back_whole(channel: grpc.aio.Channel) -> None:
    x = np.array([["", "a\0b\0"], ["é€😀", "x" * 70_000]], object)
    response = await stub(channel).ModelInfer(infer_request("identity_bytes", {"x": x}))
    expected = [[text.encode() for text in row] for row in x]
    assert answers(response)["y"].tolist() == expected


async def test_an_answer_has_all_outputs_in_the_order_of_the_model(
    channel: grpc.aio.Channel,
) -> None:
    a = np.arange(16, dtype="<i4").reshape(1, 16)
    request = infer_request("simple", {"b": a * 2, "a": a}, id="request 7")
    response = await stub(channel).ModelInfer(request)
    got = answers(response)
    assert list(got) == ["sum", "difference"]
    assert (got["sum"] == a * 3).all()
    assert (got["difference"] == -a).all()
    assert (response.model_name, response.model_version) == ("simple", "1")
    assert response.id == "request 7"


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(["difference"], ["difference"]), (["difference", "sum"], ["sum", "difference"])],
)
async def test_only_wanted_outputs_come(
    channel: grpc.aio.Channel, wanted: list[str], expected: list[str]
) -> None:
    a = np.ones((3, 16), "<i4")
    response = await stub(channel).ModelInfer(infer_request("simple", {"a": a, "b": a}, wanted))
    assert list(answers(response)) == expected


@pytest.mark.parametrize("rows", [0, 1, 8, 5000])
async def test_answers_equal_those_of_the_session_itself(
    channel: grpc.aio.Channel, rows: int
) -> None:
    x = np.random.default_rng(rows).normal(size=(rows, 784)).astype(np.float32)
    session = onnxruntime.InferenceSession(graphs.dense(), providers=["CPUExecutionProvider"])
    response = await stub(channel).ModelInfer(infer_request("dense", {"x": x}))
    np.testing.assert_allclose(answers(response)["y"], session.run(None, {"x": x})[0], atol=1e-4)


async def test_concurrent_calls_get_their_own_answers(channel: grpc.aio.Channel) -> None:
    xs = [np.full((1, 2), i, "<f4") for i in range(64)]
    calls = [stub(channel).ModelInfer(infer_request("identity_fp32", {"x": x})) for x in xs]
    for x, response in zip(xs, await asyncio.gather(*calls), strict=True):
        assert (answers(response)["y"] == x).all()


async def test_extra_raw_entries_are_ignored(channel: grpc.aio.Channel) -> None:
    request = infer_request("identity_fp32", {"x": np.zeros((1, 2), "<f4")})
    request.raw_input_contents.append(b"surplus")
    assert len((await stub(channel).ModelInfer(request)).raw_output_contents) == 1


async def test_parameters_of_the_protocol_and_of_the_user_are_taken(
    channel: grpc.aio.Channel,
) -> None:
    request = infer_request("identity_fp32", {"x": np.zeros((1, 2), "<f4")})
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    request.parameters["timeout"].int64_param = 1000
    request.parameters["priority"].uint64_param = 3
    request.parameters["sequence_id"].string_param = "s"
    request.parameters["mine"].double_param = 0.5
    await stub(channel).ModelInfer(request)


async def test_a_caller_who_leaves_ends_a_long_run(tmp_path: Any) -> None:
    graphs.store(tmp_path, "endless", graphs.endless())
    graphs.store(tmp_path, "plus", graphs.plus(1))
    async with serve_directory(tmp_path) as channel:
        forever = infer_request("endless", {"x": np.array([2**62])})
        error = await failure(stub(channel).ModelInfer(forever, timeout=0.5))
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        once = infer_request("endless", {"x": np.array([1])})
        assert answers(await stub(channel).ModelInfer(once, timeout=5))
