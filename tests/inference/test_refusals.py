"""ModelInfer through a real channel: every way a request can be wrong, and what it is told."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from servery.inference.v1 import grpc_service_pb2 as pb
from tests.inference.calling import answers, failure, infer_request, raw, stub

INVALID = grpc.StatusCode.INVALID_ARGUMENT
REQUEST_INVALID = "ERROR_REASON_INFERENCE_REQUEST_INVALID"
NOT_SERVED = "ERROR_REASON_MODEL_NOT_SERVED"
Tensor = pb.ModelInferRequest.InferInputTensor


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
async def test_parameters_of_tensors_have_their_kinds(channel: grpc.aio.Channel, key: str) -> None:
    request = simple()
    request.outputs.add(name="sum").parameters[key].bool_param = True
    error = await failure(stub(channel).ModelInfer(request))
    assert (error.code, error.reason) == (INVALID, "ERROR_REASON_INFERENCE_REQUEST_INVALID")
