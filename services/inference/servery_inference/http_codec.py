"""Inference over HTTP: a JSON object, and binary tensors behind it, to values and back.

The object becomes the message that gRPC carries, so that both are read and checked by one codec.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.codec import parse
from servery_inference.json_tensors import to_json, to_raw_layout
from servery_inference.request import (
    Answer,
    InferenceRequestInvalidError,
    InferRequest,
    Output,
    shown,
)
from servery_inference.tensor_parameters import region_values
from servery_inference.tensors import to_raw
from servery_rpc.errors import FieldInvalidError

_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_BINARY_SIZE: Final = "binary_data_size"
_BINARY: Final = "binary_data"
_BINARY_DEFAULT: Final = "binary_data_output"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """An inference request, and which of its outputs are wanted behind the JSON."""

    request: InferRequest

    binary: Mapping[str, bool]
    """By the names of outputs that say so."""

    binary_default: bool
    """Whether those are that do not say."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """The body of an answer."""

    body: bytes

    json_bytes: int | None
    """Length of the JSON at its beginning; None if that is all."""


def decode(model: str, version: str, body: bytes, json_bytes: int | None) -> HttpRequest:
    """Read a request.

    Args:
        model: Name on the wire.
        version: From the path; may be empty.
        body: JSON, and binary tensors behind it.
        json_bytes: Length of the JSON; None if there is nothing else.

    Raises:
        FieldInvalidError: It is not JSON of that length, or a member is of another kind.
        InferenceRequestInvalidError: It contradicts itself; see `codec.parse`.
    """
    length = len(body) if json_bytes is None else json_bytes
    if not 0 <= length <= len(body):
        raise FieldInvalidError(
            "Inference-Header-Content-Length", length, f"be 0 to the {len(body)} bytes of the body"
        )
    fields = parse_object(body[:length])
    request = pb.ModelInferRequest(
        model_name=model, model_version=version, id=_member(fields, "id", str, "")
    )
    parameters = dict(_member(fields, "parameters", dict, {}))
    binary_default = _flag(parameters.pop(_BINARY_DEFAULT, False), _BINARY_DEFAULT)
    set_parameters(parameters, request.parameters)
    raws = _read_inputs(_objects(fields, "inputs"), memoryview(body)[length:], request)
    binary: dict[str, bool] = {}
    for wanted in _objects(fields, "outputs"):
        output = request.outputs.add(name=_member(wanted, "name", str, ""))
        its = dict(_member(wanted, "parameters", dict, {}))
        if _BINARY in its:
            binary[output.name] = _flag(its.pop(_BINARY), _BINARY)
        set_parameters(its, output.parameters)
    return HttpRequest(parse(request, raws, length), binary, binary_default)


def encode(asked: HttpRequest, answer: Answer) -> HttpAnswer:
    """Render an answer."""
    behind: list[bytes | memoryview] = []
    outputs = [
        _rendered(output, asked.binary.get(output.name, asked.binary_default), behind)
        for output in answer.outputs
    ]
    fields: dict[str, Any] = {
        "model_name": asked.request.model,
        "model_version": str(answer.version),
        "outputs": outputs,
    }
    if asked.request.id:
        fields["id"] = asked.request.id
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    if not behind:
        return HttpAnswer(text, None)
    return HttpAnswer(b"".join((text, *behind)), len(text))


def parse_object(text: bytes) -> dict[str, Any]:
    """Read a JSON object; empty text is an empty one.

    Raises:
        FieldInvalidError: It is none.
    """
    try:
        fields = json.loads(text.decode()) if text.strip() else {}
        if _SURROGATE.search(text):  # Half of a character escapes what checks the text itself.
            json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        problem = str(error)[:80] or "it is nested too deep"
        raise FieldInvalidError("body", f"{len(text)} bytes", f"be JSON: {problem}") from None
    if not isinstance(fields, dict):
        raise FieldInvalidError("body", type(fields).__name__, "be a JSON object")
    return fields


def set_parameters(values: Mapping[str, Any], parameters: Any) -> None:
    """Put JSON values into a map of `InferParameter`.

    Raises:
        FieldInvalidError: One is an object, an array, null, or an integer beyond 64 bits.
    """
    for key, value in values.items():
        kind = _PARAMETER_KINDS.get(type(value))
        try:
            if kind is None:
                raise ValueError
            setattr(parameters[key], kind, value)
        except ValueError:
            raise FieldInvalidError(
                f"parameters.{shown(key)}", value, "be a truth, a text, or a number of 64 bits"
            ) from None


_PARAMETER_KINDS: Final = {
    bool: "bool_param",
    int: "int64_param",
    str: "string_param",
    float: "double_param",
}


def _read_inputs(
    given: Sequence[Mapping[str, Any]], behind: memoryview, request: pb.ModelInferRequest
) -> list[memoryview]:
    raws: list[memoryview] = []
    at = 0
    for fields in given:
        name = _member(fields, "name", str, "")
        shape = _member(fields, "shape", list, [])
        if not all(type(size) is int and abs(size) < 1 << 63 for size in shape):
            raise FieldInvalidError(f"inputs.{shown(name)}.shape", shape, "be an array of integers")
        tensor = request.inputs.add(
            name=name, datatype=_member(fields, "datatype", str, ""), shape=shape
        )
        its = dict(_member(fields, "parameters", dict, {}))
        size = its.pop(_BINARY_SIZE, None)
        set_parameters(its, tensor.parameters)
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(behind) - at:
                raise InferenceRequestInvalidError(
                    f"input '{shown(name)}' has the binary_data_size {str(size)[:40]}, but"
                    f" {len(behind) - at} bytes are left behind the JSON",
                    request.model_name,
                )
            raws.append(behind[at : at + size])
            at += size
        elif "data" in fields:
            raw = to_raw_layout(fields["data"], tensor.datatype, name, request.model_name)
            raws.append(memoryview(raw))
        elif "shared_memory_region" not in its:
            raise InferenceRequestInvalidError(
                f"input '{shown(name)}' has neither data nor binary_data_size nor a region of"
                " shared memory",
                request.model_name,
            )
    if at != len(behind):
        raise InferenceRequestInvalidError(
            f"{len(behind) - at} bytes behind the JSON belong to no input", request.model_name
        )
    return raws


def _rendered(output: Output, binary: bool, behind: list[bytes | memoryview]) -> dict[str, Any]:  # noqa: FBT001 private
    fields: dict[str, Any] = {
        "name": output.name,
        "datatype": output.datatype,
        "shape": list(output.value.shape),
    }
    if output.region:
        fields["parameters"] = region_values(output.region)
    elif binary:
        raw = to_raw(output.value)
        fields["parameters"] = {_BINARY_SIZE: len(raw)}
        behind.append(raw)
    else:
        fields["data"] = to_json(output)
    return fields


def _objects(fields: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = _member(fields, key, list, [])
    if not all(isinstance(item, dict) for item in items):
        raise FieldInvalidError(key, "an array", "hold JSON objects only")
    return items


def _member(fields: Mapping[str, Any], key: str, kind: type[Any], default: Any) -> Any:
    value = fields.get(key, default)
    if not isinstance(value, kind):
        raise FieldInvalidError(key, value, f"be a JSON {_JSON_KINDS[kind]}")
    return value


_JSON_KINDS: Final[Mapping[type[Any], str]] = {str: "string", dict: "object", list: "array"}


def _flag(value: Any, key: str) -> bool:
    if not isinstance(value, bool):
        raise FieldInvalidError(f"parameters.{key}", value, "be true or false")
    return value
