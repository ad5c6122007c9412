"""ModelInfer through a real channel: every datatype there and back, and what is refused."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest

from servery.inference.v1 import grpc_service_pb2 as pb
from tests.inference import graphs
from tests.inference.calling import DTYPES, answers, failure, infer_request, raw, stub
from tests.inference.conftest import serve_directory

INVALID = grpc.StatusCode.INVALID_ARGUMENT
REQUEST_INVALID = "ERROR_REASON_INFERENCE_REQUEST_INVALID"
NOT_SERVED = "ERROR_REASON_MODEL_NOT_SERVED"
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


def simple() -> pb.ModelInferRequest:
    a = np.zeros((1, 16), "<i4")
    return infer_request("simple", {"a": a, "b": a})


def _no_b(request: pb.ModelInferRequest) -> None:
    del request.inputs[1], request.raw_input_contents[1]


def _twice(request: pb.ModelInferRequest) -> None:
    request.inputs.append(request.inputs[0])
    request.raw_input_contents.append(request.raw_input_contents[0])


def _unknown_input(request: pb.ModelInferRequest) -> None:
    request.inputs[1].name = "FOO" * 10_000


def _unknown_output(request: pb.ModelInferRequest) -> None:
    request.outputs.add(name="NOPE" * 10_000)


def _output_twice(request: pb.ModelInferRequest) -> None:
    request.outputs.add(name="sum")
    request.outputs.add(name="sum")


def _shape(*shape: int) -> Callable[[pb.ModelInferRequest], None]:
    def change(request: pb.ModelInferRequest) -> None:
        request.inputs[0].shape[:] = shape

    return change


def _datatype(datatype: str) -> Callable[[pb.ModelInferRequest], None]:
    def change(request: pb.ModelInferRequest) -> None:
        request.inputs[0].datatype = datatype

    return change


def _raw(data: bytes) -> Callable[[pb.ModelInferRequest], None]:
    def change(request: pb.ModelInferRequest) -> None:
        request.raw_input_contents[0] = data

    return change


def _fewer_raw(request: pb.ModelInferRequest) -> None:
    del request.raw_input_contents[1]


def _both(request: pb.ModelInferRequest) -> None:
    request.inputs[0].contents.int_contents.extend([0] * 16)


def _nothing(request: pb.ModelInferRequest) -> None:
    del request.raw_input_contents[:]


def _typed(field: str, count: int) -> Callable[[pb.ModelInferRequest], None]:
    def change(request: pb.ModelInferRequest) -> None:
        del request.raw_input_contents[:]
        getattr(request.inputs[0].contents, field).extend([0] * count)
        request.inputs[1].contents.int_contents.extend([0] * 16)

    return change


def _parameter(key: str, kind: str, value: Any) -> Callable[[pb.ModelInferRequest], None]:
    def change(request: pb.ModelInferRequest) -> None:
        setattr(request.parameters[key], kind, value)

    return change


def _version(version: str) -> Callable[[pb.ModelInferRequest], None]:
    def change(request: pb.ModelInferRequest) -> None:
        request.model_version = version

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_no_b, id="an input is missing"),
        pytest.param(_twice, id="an input is there twice"),
        pytest.param(_unknown_input, id="an input is unknown"),
        pytest.param(_unknown_output, id="an output is unknown"),
        pytest.param(_output_twice, id="an output is wanted twice"),
        pytest.param(_shape(1, 15), id="another size"),
        pytest.param(_shape(16), id="another rank"),
        pytest.param(_shape(-1, 16), id="an open size"),
        pytest.param(_shape(-(2**63), 16), id="the least size"),
        pytest.param(_shape(2**63 - 1, 16), id="a size that overflows"),
        pytest.param(_shape(2**27, 16), id="a claim of 8 GiB"),
        pytest.param(_shape(*[1] * 10_000), id="10000 axes"),
        pytest.param(_datatype("FP32"), id="another datatype"),
        pytest.param(_datatype("COMPLEX" * 10_000), id="an unknown datatype"),
        pytest.param(_datatype(""), id="no datatype"),
        pytest.param(_raw(b"\0" * 60), id="too few bytes"),
        pytest.param(_raw(b"\0" * 65), id="too many bytes"),
        pytest.param(_raw(b""), id="no bytes"),
        pytest.param(_fewer_raw, id="too few raw contents"),
        pytest.param(_both, id="raw and typed contents"),
        pytest.param(_nothing, id="no contents"),
        pytest.param(_typed("int_contents", 15), id="too few typed contents"),
        pytest.param(_typed("int64_contents", 16), id="another typed list"),
        pytest.param(_parameter("timeout", "uint64_param", 1), id="timeout of a wrong kind"),
        pytest.param(_parameter("timeout", "string_param", "1"), id="timeout as text"),
        pytest.param(_parameter("priority", "int64_param", -1), id="priority below 0"),
        pytest.param(_parameter("sequence_start", "int64_param", 1), id="a flag as a number"),
        pytest.param(_parameter("mine", "uint64_param", 1), id="a user's uint64"),
        pytest.param(_parameter("triton_secret", "bool_param", 1), id="a reserved key"),
        pytest.param(_version("abc"), id="version abc"),
        pytest.param(_version("-1"), id="version -1"),
        pytest.param(_version("0"), id="version 0"),
        pytest.param(_version("9" * 5000), id="a version too long"),
    ],
)
async def test_what_does_not_fit_the_model_is_the_callers_fault(
    channel: grpc.aio.Channel, change: Callable[[pb.ModelInferRequest], None]
) -> None:
    request = simple()
    change(request)
    error = await failure(stub(channel).ModelInfer(request))
    assert (error.code, error.reason) == (INVALID, REQUEST_INVALID)
    assert error.metadata["model"] == "simple"
    await stub(channel).ModelInfer(simple())  # The server goes on.


@pytest.mark.parametrize(
    ("model", "version", "text"),
    [
        ("nope", "", "Request for unknown model: 'nope' is not found"),
        ("simple", "9", "Request for unknown model: 'simple' version 9 is not found"),
    ],
)
async def test_what_is_not_served_is_not_found(
    channel: grpc.aio.Channel, model: str, version: str, text: str
) -> None:
    request = simple()
    request.model_name, request.model_version = model, version
    error = await failure(stub(channel).ModelInfer(request))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, NOT_SERVED)
    assert error.metadata == {"model": model, "version": version}
    assert error.message == text  # Clients of the protocol compare it.


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            _no_b,
            (
                "expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) ['a'], but"
                " missing required input(s) ['b']. Please provide all required input(s)."
            ),
        ),
        (_datatype("FP32"), "inference input 'a' data-type is 'FP32', but model 'simple' expects"),
        (_shape(1, 15), "unexpected shape for input 'a' for model 'simple'. Expected [-1,16], got"),
        (
            _raw(b"\0" * 60),
            "input byte size mismatch for input 'a' for model 'simple'. Expected 64, got 60",
        ),
        (_fewer_raw, "unable to find data for input tensor 'b' for model 'simple' in request."),
        (
            _version("abc"),
            (
                "failed to get model version from specified version string 'abc' (details: stol),"
                " version should be an integral value > 0"
            ),
        ),
        (_parameter("timeout", "bool_param", 1), "invalid value type for 'timeout' parameter, "),
    ],
)
async def test_texts_that_clients_compare_are_the_protocols(
    channel: grpc.aio.Channel, change: Callable[[pb.ModelInferRequest], None], text: str
) -> None:
    request = simple()
    change(request)
    assert (await failure(stub(channel).ModelInfer(request))).message.startswith(text)


async def test_a_version_counts_up_to_its_first_letter(channel: grpc.aio.Channel) -> None:
    request = simple()
    request.model_version = "1abc"
    assert (await stub(channel).ModelInfer(request)).model_version == "1"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xff\xff\xff\xff", id="a length beyond the end"),
        pytest.param(b"\x01\0\0\0a", id="one element of two"),
        pytest.param(raw(np.array(["a", "b", "c"], object)), id="three elements of two"),
        pytest.param(raw(np.array(["a", "b"], object)) + b"\0", id="a byte left over"),
        pytest.param(raw(np.array([b"\xff", b""], object)), id="not UTF-8"),
        pytest.param(raw(np.array([b"\xed\xa0\x80", b""], object)), id="a surrogate"),
        pytest.param(b"", id="nothing"),
    ],
)
async def test_malformed_texts_are_refused(channel: grpc.aio.Channel, data: bytes) -> None:
    request = infer_request("identity_bytes", {"x": np.array([["a", "b"]], object)})
    request.raw_input_contents[0] = data
    error = await failure(stub(channel).ModelInfer(request))
    assert (error.code, error.reason) == (INVALID, REQUEST_INVALID)


async def test_a_bool_is_0_or_1(channel: grpc.aio.Channel) -> None:
    request = infer_request("identity_bool", {"x": np.zeros((1, 2), bool)})
    request.raw_input_contents[0] = b"\x00\x02"
    assert (await failure(stub(channel).ModelInfer(request))).reason == REQUEST_INVALID


async def test_half_floats_travel_raw_only(channel: grpc.aio.Channel) -> None:
    contents = pb.InferTensorContents(fp32_contents=[0, 0])
    tensor = Tensor(name="x", datatype="FP16", shape=[1, 2], contents=contents)
    request = pb.ModelInferRequest(model_name="identity_fp16", inputs=[tensor])
    assert (await failure(stub(channel).ModelInfer(request))).reason == REQUEST_INVALID


async def test_a_huge_empty_tensor_is_refused(channel: grpc.aio.Channel) -> None:
    request = infer_request("free", {"x": np.zeros((1, 0), "<f4")})
    await stub(channel).ModelInfer(request)
    request.inputs[0].shape[:] = [2**62, 0]
    assert (await failure(stub(channel).ModelInfer(request))).reason == REQUEST_INVALID


async def test_values_that_a_node_refuses_are_the_callers_fault(channel: grpc.aio.Channel) -> None:
    assert answers(await stub(channel).ModelInfer(infer_request("pick", {"x": np.array([2])})))
    error = await failure(stub(channel).ModelInfer(infer_request("pick", {"x": np.array([7])})))
    assert (error.code, error.reason) == (INVALID, REQUEST_INVALID)
    assert "/" not in error.message


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"\xff\xff", id="garbage"),
        pytest.param(b"\x3a\xff\xff\xff\xff\x0f", id="raw contents of 4 GiB"),
        pytest.param(b"\x3a\x02a", id="raw contents that break off"),
        pytest.param(b"\x3b", id="a group"),
        pytest.param(b"\x0a\x01\xff", id="a name that is not UTF-8"),
        pytest.param(b"\xf8" + b"\xff" * 12, id="an endless number"),
        pytest.param(b"\x3a\x00" * 70_000, id="too many fields"),
    ],
)
async def test_bytes_that_are_no_request_are_refused(
    channel: grpc.aio.Channel, message: bytes
) -> None:
    call: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    error = await failure(call(message))
    assert (error.code, error.reason) == (INVALID, "ERROR_REASON_FIELD_INVALID")


@pytest.mark.parametrize("key", ["shared_memory_region", "classification"])
async def test_extensions_that_are_not_there_are_unimplemented(
    channel: grpc.aio.Channel, key: str
) -> None:
    request = simple()
    request.outputs.add(name="sum").parameters[key].string_param = "r"
    error = await failure(stub(channel).ModelInfer(request))
    assert error.code is grpc.StatusCode.UNIMPLEMENTED
    assert error.reason == "ERROR_REASON_UNSUPPORTED"


async def test_a_caller_who_leaves_ends_a_long_run(tmp_path: Any) -> None:
    graphs.store(tmp_path, "endless", graphs.endless())
    graphs.store(tmp_path, "plus", graphs.plus(1))
    async with serve_directory(tmp_path) as channel:
        forever = infer_request("endless", {"x": np.array([2**62])})
        error = await failure(stub(channel).ModelInfer(forever, timeout=0.5))
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        once = infer_request("endless", {"x": np.array([1])})
        assert answers(await stub(channel).ModelInfer(once, timeout=5))
