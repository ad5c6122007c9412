"""Elements of tensors as JSON values, to the raw layout and back."""

import struct
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from servery_inference import bfloat16
from servery_inference.datatypes import DATATYPES, Datatype
from servery_inference.request import Array, InferenceRequestInvalidError, Output, shown

_BY_WIRE: Final = {datatype.wire: datatype for datatype in DATATYPES}
_LENGTH: Final = struct.Struct("<I")
_MAX_DEPTH: Final = 64


def to_raw_layout(data: Any, datatype: str, name: str, model: str) -> bytes:
    """Render JSON values, nested or flat, in the raw layout of a datatype.

    Args:
        data: What stands under `data` of an input.
        datatype: Name on the wire.
        name: Of the input.
        model: Name on the wire.

    Raises:
        InferenceRequestInvalidError: A value is not of the datatype, or out of its range.
    """
    known = _BY_WIRE.get(datatype)
    if known is None:
        raise _invalid(name, model, f"has the datatype '{shown(datatype)}', which does not exist")
    if not isinstance(data, list):
        raise _invalid(name, model, "must have its data as a JSON array")
    if known.is_bytes:
        return b"".join(_text(element, name, model) for element in _flat(data, name, model))
    return _numbers(data, known, name, model)


def to_json(output: Output) -> list[Any]:
    """Render the elements of an output as a flat list of JSON values."""
    value = output.value
    if output.datatype == "BF16":
        value = bfloat16.to_float32(value)
    values: list[Any] = value.reshape(-1).tolist()
    return values


def _numbers(data: list[Any], datatype: Datatype, name: str, model: str) -> bytes:
    try:
        found = np.asarray(data) if data else np.empty(0, datatype.numpy)
        if datatype.wire == "UINT64" and found.dtype.kind == "f":  # Too large for signed integers.
            found = _exact(data)
    except (ValueError, OverflowError):
        raise _invalid(name, model, "has rows of different lengths in its data") from None
    wanted = "f" if datatype.wire == "BF16" else datatype.numpy.kind
    if found.dtype.kind == "O" and wanted in "iuf":  # Integers beyond 64 bits, or mixed kinds.
        raise _invalid(name, model, f"has data that is not {datatype.wire}")
    allowed = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}[wanted]
    if found.dtype.kind not in allowed:
        raise _invalid(name, model, f"has data that is not {datatype.wire}")
    if wanted in "iu" and found.size:
        limits = np.iinfo(datatype.numpy)
        if int(found.min()) < limits.min or int(found.max()) > limits.max:
            raise _invalid(name, model, f"has data beyond the range of {datatype.wire}")
    if datatype.wire == "BF16":
        return bfloat16.from_float32(found.astype("<f4")).tobytes()
    with np.errstate(over="ignore"):  # Too large for the type is infinite, as everywhere.
        return found.astype(datatype.numpy).tobytes()


def _exact(data: list[Any]) -> Array:
    """Integers of up to 64 bits, which NumPy alone makes fractions; anything else as objects."""
    found = np.asarray(data, object)
    if all(type(value) is int and 0 <= value < 1 << 64 for value in found.flat):
        return found.astype(np.uint64)
    return found


def _text(element: Any, name: str, model: str) -> bytes:
    if not isinstance(element, str):
        raise _invalid(name, model, "has data that is not BYTES: a JSON string for each element")
    encoded = element.encode()
    return _LENGTH.pack(len(encoded)) + encoded


def _flat(data: list[Any], name: str, model: str, depth: int = 0) -> Iterator[Any]:
    if depth > _MAX_DEPTH:
        raise _invalid(name, model, f"has data nested more than {_MAX_DEPTH} deep")
    for element in data:
        if isinstance(element, list):
            yield from _flat(element, name, model, depth + 1)
        else:
            yield element


def _invalid(name: str, model: str, problem: str) -> InferenceRequestInvalidError:
    return InferenceRequestInvalidError(
        f"input '{shown(name)}' for model '{shown(model)}' {problem}", model
    )
