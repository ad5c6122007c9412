"""Parameters of single tensors: shared memory, and the classification extension."""

from collections.abc import Mapping, MutableMapping
from typing import Any, Final

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.request import InferenceRequestInvalidError, Placement, Region, shown

_REGION: Final = "shared_memory_region"
_SIZE: Final = "shared_memory_byte_size"
_OFFSET: Final = "shared_memory_offset"
_CLASSES: Final = "classification"

_Tensor = pb.ModelInferRequest.InferInputTensor | pb.ModelInferRequest.InferRequestedOutputTensor


def region_of(tensor: _Tensor, model: str) -> Region | None:
    """Return the part of shared memory that holds a tensor; None if it is elsewhere.

    Raises:
        InferenceRequestInvalidError: A parameter is missing, negative, or of the wrong kind.
    """
    parameters = tensor.parameters
    if _REGION not in parameters:
        for key in (_SIZE, _OFFSET):
            if key in parameters:
                raise _invalid(tensor, model, f"has '{key}' without '{_REGION}'")
        return None
    if _SIZE not in parameters:
        raise _invalid(tensor, model, f"has '{_REGION}' without '{_SIZE}'")
    name = _value(tensor, _REGION, "string_param", model)
    size = _value(tensor, _SIZE, "int64_param", model)
    offset = _value(tensor, _OFFSET, "int64_param", model) if _OFFSET in parameters else 0
    if size < 0 or offset < 0:
        raise _invalid(tensor, model, f"has {size} bytes at offset {offset} of its region")
    return Region(name, offset, size)


def placement_of(
    output: pb.ModelInferRequest.InferRequestedOutputTensor, model: str
) -> Placement | None:
    """Return how an output is wanted; None if plainly.

    Raises:
        InferenceRequestInvalidError: A parameter is missing, out of range, or of the wrong kind.
    """
    region = region_of(output, model)
    num_classes = 0
    if _CLASSES in output.parameters:
        num_classes = _value(output, _CLASSES, "int64_param", model)
        if num_classes <= 0:
            raise _invalid(output, model, f"has '{_CLASSES}' {num_classes}; it must be above 0")
    return Placement(region, num_classes) if region or num_classes else None


def describe(region: Region, parameters: MutableMapping[str, Any] | Any) -> None:
    """Say in the parameters of an answered tensor where it was written."""
    parameters[_REGION].string_param = region.name
    parameters[_SIZE].int64_param = region.size_bytes
    if region.offset:
        parameters[_OFFSET].int64_param = region.offset


def region_values(region: Region) -> Mapping[str, str | int]:
    """Return the parameters that `describe` sets, as plain values."""
    values: dict[str, str | int] = {_REGION: region.name, _SIZE: region.size_bytes}
    if region.offset:
        values[_OFFSET] = region.offset
    return values


def _value(tensor: _Tensor, key: str, kind: str, model: str) -> Any:
    parameter = tensor.parameters[key]
    if parameter.WhichOneof("parameter_choice") != kind:
        raise InferenceRequestInvalidError(
            f"invalid value type for '{key}' parameter of '{shown(tensor.name)}', expected {kind}.",
            model,
        )
    return getattr(parameter, kind)


def _invalid(tensor: _Tensor, model: str, problem: str) -> InferenceRequestInvalidError:
    return InferenceRequestInvalidError(
        f"tensor '{shown(tensor.name)}' for model '{shown(model)}' {problem}", model
    )
