"""`ModelInfer` messages to values and back: the only module that knows their fields."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference import wire
from servery_inference.request import (
    NO_TERMS,
    Answer,
    InferenceRequestInvalidError,
    InferRequest,
    Input,
    Terms,
    shown,
)
from servery_inference.tensor_parameters import describe, placement_of, region_of
from servery_inference.tensors import to_raw
from servery_rpc.errors import FieldInvalidError

_RAW_INPUT: Final = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_RAW_OUTPUT: Final = pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER

_EXPLAIN: Final = "explain"
_KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "sequence_id": ("int64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "priority": ("int64_param", "uint64_param"),
    "timeout": ("int64_param",),
    "triton_enable_empty_final_response": ("bool_param",),
    _EXPLAIN: ("bool_param",),
}
"""The kinds that the parameters of the protocol may have, and our own."""

_TERMS: Final[Mapping[str, str]] = {
    "priority": "priority",
    "timeout": "timeout_us",
    "sequence_id": "sequence_id",
    "sequence_start": "sequence_start",
    "sequence_end": "sequence_end",
}
"""Field of `Terms` by the parameter that holds it."""

_USER_KINDS: Final = ("bool_param", "int64_param", "string_param", "double_param")


def decode(message: bytes) -> InferRequest:
    """Read a serialized `ModelInferRequest`; its raw tensors stay views of `message`.

    Raises:
        FieldInvalidError: The bytes are not such a message.
        InferenceRequestInvalidError: It contradicts itself, or a parameter is unknown or of the
            wrong kind.
    """
    try:
        header, raws = wire.cut_out(message, _RAW_INPUT)
        request = pb.ModelInferRequest.FromString(header)
    except (wire.MalformedMessageError, DecodeError):
        raise FieldInvalidError(
            "request", f"{len(message)} bytes", "be the protobuf message of this method"
        ) from None
    return parse(request, raws, len(header))


def parse(
    request: pb.ModelInferRequest, raws: Sequence[memoryview], parsed_bytes: int
) -> InferRequest:
    """Read a request whose raw tensors were taken out of it.

    Args:
        request: The message, without `raw_input_contents`.
        raws: One for each input that is not in shared memory; empty if they are in `contents`.
        parsed_bytes: Size of the message.

    Raises:
        InferenceRequestInvalidError: See `decode`.
    """
    model = request.model_name
    for key, parameter in request.parameters.items():
        _check_parameter(key, parameter, model)
    inputs = _inputs(request, raws)
    texts = sum(len(t.raw) for t in inputs if t.raw is not None and t.datatype == "BYTES")
    shares = any(tensor.region for tensor in inputs)
    placements = {
        output.name: placement
        for output in request.outputs
        if output.parameters and (placement := placement_of(output, model))
    }
    return InferRequest(
        model,
        request.model_version,
        request.id,
        inputs,
        tuple([output.name for output in request.outputs]),
        parsed_bytes + texts,
        _terms(request.parameters) if request.parameters else NO_TERMS,
        placements,
        shares or any(placement.region for placement in placements.values()),
        _EXPLAIN in request.parameters and request.parameters[_EXPLAIN].bool_param,
    )


def encode(request: InferRequest, answer: Answer, parameters: Mapping[str, bool]) -> bytes:
    """Serialize the `ModelInferResponse` to `request`, its tensors raw, in the order given."""
    response = pb.ModelInferResponse(
        model_name=request.model, model_version=str(answer.version), id=request.id
    )
    for key, value in parameters.items():
        response.parameters[key].bool_param = value
    for output in answer.outputs:
        tensor = response.outputs.add(
            name=output.name, datatype=output.datatype, shape=output.value.shape
        )
        if output.region:
            describe(output.region, tensor.parameters)
    raws = [b"" if output.region else to_raw(output.value) for output in answer.outputs]
    return wire.append(response.SerializeToString(), _RAW_OUTPUT, raws)


def _inputs(request: pb.ModelInferRequest, raws: Sequence[memoryview]) -> tuple[Input, ...]:
    inputs: list[Input] = []
    model = request.model_name
    position = 0
    for tensor in request.inputs:
        shape = tuple(tensor.shape)
        region = region_of(tensor, model) if tensor.parameters else None
        if region:
            inputs.append(Input(tensor.name, tensor.datatype, shape, None, None, region))
        elif not raws:
            typed = {field.name: values for field, values in tensor.contents.ListFields()}
            inputs.append(Input(tensor.name, tensor.datatype, shape, None, typed))
        else:
            if tensor.HasField("contents"):
                raise InferenceRequestInvalidError(
                    f"input '{shown(tensor.name)}' for model '{shown(model)}' has contents beside"
                    " raw_input_contents; send all inputs in one of the two",
                    model,
                )
            if position >= len(raws):
                raise InferenceRequestInvalidError(
                    f"unable to find data for input tensor '{shown(tensor.name)}' for model"
                    f" '{shown(model)}' in request.",
                    model,
                )
            inputs.append(Input(tensor.name, tensor.datatype, shape, raws[position], None))
            position += 1
    return tuple(inputs)


def _terms(parameters: Mapping[str, pb.InferParameter]) -> Terms:
    """Read the parameters that decide about the turn of a request; they are of the right kinds."""
    given: dict[str, Any] = {}
    for key, field in _TERMS.items():
        if key in parameters:
            parameter = parameters[key]
            given[field] = getattr(parameter, str(parameter.WhichOneof("parameter_choice")))
    return Terms(**given)


def _check_parameter(key: str, parameter: pb.InferParameter, model: str) -> None:
    kind = parameter.WhichOneof("parameter_choice")
    if key.startswith("triton_") and key not in _KINDS:
        raise InferenceRequestInvalidError(
            f"parameter '{shown(key)}' is unknown; keys that begin with 'triton_' are reserved",
            model,
        )
    kinds = _KINDS.get(key, _USER_KINDS)
    if kind not in kinds:
        expected = " or ".join(kinds)
        raise InferenceRequestInvalidError(
            f"invalid value type for '{shown(key)}' parameter, expected {expected}.", model
        )
    if key == "priority" and kind == "int64_param" and parameter.int64_param < 0:
        raise InferenceRequestInvalidError(
            f"parameter 'priority' is {parameter.int64_param}; it must be at least 0", model
        )
