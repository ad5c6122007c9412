"""Elements of tensors: bytes and typed lists to NumPy arrays, and arrays back to bytes.

Raw layout: row-major, little endian; a BYTES element is its length as uint32 and then its bytes.
Numbers are viewed in place where their address allows it. Texts must be UTF-8, as ONNX has it.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from servery_inference.datatypes import Datatype
from servery_inference.request import (
    Array,
    InferenceRequestInvalidError,
    InferRequest,
    Input,
    shown,
    shown_shape,
)
from servery_inference.signature import Signature, Tensor, refitted

_LENGTH: Final = struct.Struct("<I")
_MAX_AXIS_OF_EMPTY: Final = 1 << 20


def bind(request: InferRequest, signature: Signature) -> dict[str, Array]:
    """Fit the inputs of `request` to a model.

    Returns:
        An array for every input of `signature`, of its datatype and a shape that fits.

    Raises:
        InferenceRequestInvalidError: An input is unknown, missing, there twice, or has another
            datatype, shape or size than the model takes; or there are too many rows.
    """
    model = request.model
    feed: dict[str, Array] = {}
    for given in request.inputs:
        expected = signature.inputs.get(given.name)
        if expected is None:
            raise InferenceRequestInvalidError(
                f"unexpected inference input '{shown(given.name)}' for model '{model}'", model
            )
        if given.name in feed:
            raise InferenceRequestInvalidError(
                f"input '{given.name}' is there twice in the request for model '{model}'", model
            )
        feed[given.name] = _array(given, expected, model)
    if len(feed) < len(signature.inputs) and (missed := _missing(feed, signature)):
        missing = ",".join(f"'{name}'" for name in missed)
        got = ",".join(f"'{name}'" for name in feed)
        raise InferenceRequestInvalidError(
            f"expected {len(signature.inputs)} inputs but got {len(feed)} inputs for model"
            f" '{model}'. Got input(s) [{got}], but missing required input(s) [{missing}]."
            " Please provide all required input(s).",
            model,
        )
    _check_rows(request.id, feed, signature.max_batch_size, model)
    return feed


def fit(feed: Mapping[str, Array], signature: Signature, model: str) -> dict[str, Array]:
    """Fit arrays to a model as `bind` does with those of a request; none is copied.

    Raises:
        InferenceRequestInvalidError: See `bind`.
    """
    if unknown := [name for name in feed if name not in signature.inputs]:
        raise InferenceRequestInvalidError(
            f"unexpected inference input '{shown(unknown[0])}' for model '{model}'", model
        )
    if missed := _missing(feed, signature):
        raise InferenceRequestInvalidError(
            f"input '{missed[0]}' for model '{model}' is missing", model
        )
    fitted: dict[str, Array] = {}
    for name, array in feed.items():
        expected = signature.inputs[name]
        if array.dtype != expected.datatype.numpy:
            raise InferenceRequestInvalidError(
                f"inference input '{name}' data-type is '{array.dtype}', but model '{model}'"
                f" expects '{expected.datatype.wire}'",
                model,
            )
        if not expected.fits(array.shape):
            raise InferenceRequestInvalidError(
                f"unexpected shape for input '{name}' for model '{model}'. Expected"
                f" {shown_shape(expected.shape)}, got {shown_shape(array.shape)}.",
                model,
            )
        fitted[name] = (
            array
            if expected.inner is None
            else array.reshape(refitted(array.shape, expected.shape, expected.inner))
        )
    _check_rows("", fitted, signature.max_batch_size, model)
    return fitted


def _missing(feed: Mapping[str, Array], signature: Signature) -> list[str]:
    return [t.name for t in signature.inputs.values() if t.name not in feed and not t.optional]


def _check_rows(
    request_id: str, feed: Mapping[str, Array], max_batch_size: int, model: str
) -> None:
    if not max_batch_size:
        return
    rows: int | None = None
    for name, array in feed.items():
        if rows is not None and len(array) != rows:
            raise InferenceRequestInvalidError(
                f"input '{name}' batch size does not match other inputs for '{model}'", model
            )
        rows = len(array)
    if rows is not None and rows > max_batch_size:
        raise InferenceRequestInvalidError(
            f"[request id: {shown(request_id) or '<id_unknown>'}] inference request batch-size must"
            f" be <= {max_batch_size} for '{model}'",
            model,
        )


def wanted_outputs(request: InferRequest, signature: Signature) -> list[str]:
    """Return the names of the outputs to compute, in the order of the model.

    Raises:
        InferenceRequestInvalidError: A wanted output is unknown or wanted twice.
    """
    if not request.outputs:
        return list(signature.outputs)
    wanted: set[str] = set()
    for name in request.outputs:
        if name not in signature.outputs:
            raise InferenceRequestInvalidError(
                f"unexpected inference output '{shown(name)}' for model '{request.model}'",
                request.model,
            )
        if name in wanted:
            raise InferenceRequestInvalidError(
                f"output '{name}' is requested twice of model '{request.model}'", request.model
            )
        wanted.add(name)
    return [name for name in signature.outputs if name in wanted]


def to_raw(value: Array) -> bytes | memoryview:
    """Render the elements of an output in the raw layout; numbers are not copied."""
    if value.dtype.kind != "O":
        return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
    parts: list[bytes] = []
    for text in value.ravel():
        encoded = text.encode()
        parts += (_LENGTH.pack(len(encoded)), encoded)
    return b"".join(parts)


def _array(given: Input, expected: Tensor, model: str) -> Array:
    datatype = expected.datatype
    if given.datatype != datatype.wire:
        raise InferenceRequestInvalidError(
            f"inference input '{given.name}' data-type is '{shown(given.datatype)}', but model"
            f" '{model}' expects '{datatype.wire}'",
            model,
        )
    if not expected.fits(given.shape) or not _is_possible(given.shape):
        raise InferenceRequestInvalidError(
            f"unexpected shape for input '{given.name}' for model '{model}'. Expected"
            f" {shown_shape(expected.shape)}, got {shown_shape(given.shape)}.",
            model,
        )
    count = math.prod(given.shape)
    if given.raw is None:
        flat = _from_typed(given, given.typed or {}, datatype, count, model)
    elif datatype.is_bytes:
        flat = _texts(_split(given.name, given.raw, count, model), given.name, model)
    else:
        flat = _numbers(given.name, given.raw, datatype, count, model)
    if expected.inner is None:
        return flat.reshape(given.shape)
    return flat.reshape(refitted(given.shape, expected.shape, expected.inner))


def _is_possible(shape: tuple[int, ...]) -> bool:
    """Whether a tensor can have `shape`: bytes that are there bound every axis, unless one is 0."""
    if min(shape, default=1) > 0:
        return True
    return all(0 <= size <= _MAX_AXIS_OF_EMPTY for size in shape)


def _numbers(name: str, raw: memoryview, datatype: Datatype, count: int, model: str) -> Array:
    expected_bytes = count * datatype.numpy.itemsize
    if len(raw) != expected_bytes:
        raise InferenceRequestInvalidError(
            f"input byte size mismatch for input '{name}' for model '{model}'. Expected"
            f" {expected_bytes}, got {len(raw)}",
            model,
        )
    if datatype.numpy.kind == "b" and np.frombuffer(raw, np.uint8).max(initial=0) > 1:
        raise InferenceRequestInvalidError(
            f"input '{name}' of model '{model}' is BOOL and holds a byte other than 0 and 1", model
        )
    flat = np.frombuffer(raw, datatype.numpy)
    # Native code may assume that numbers lie at multiples of their size; the caller chose this one.
    return flat if flat.flags.aligned else flat.copy()


def _split(name: str, raw: memoryview, count: int, model: str) -> list[bytes]:
    elements: list[bytes] = []
    at, end = 0, len(raw)
    while at < end:
        if len(elements) == count or at + _LENGTH.size > end:
            break
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if at + length > end:
            raise InferenceRequestInvalidError(
                f"element {len(elements)} of BYTES input '{name}' for model '{model}' claims"
                f" {length} bytes, but {end - at} are left",
                model,
            )
        elements.append(bytes(raw[at : at + length]))
        at += length
    if len(elements) != count or at != end:
        raise InferenceRequestInvalidError(
            f"BYTES input '{name}' for model '{model}' must hold {count} elements, each its"
            f" length in 4 bytes and then itself; it holds {len(elements)} and {end - at} bytes"
            " more",
            model,
        )
    return elements


def _texts(elements: Sequence[bytes], name: str, model: str) -> Array:
    flat = np.empty(len(elements), object)
    for index, element in enumerate(elements):
        try:
            flat[index] = element.decode()
        except UnicodeDecodeError:
            raise InferenceRequestInvalidError(
                f"element {index} of BYTES input '{name}' for model '{model}' is not UTF-8, which"
                " texts in ONNX are",
                model,
            ) from None
    return flat


def _from_typed(
    given: Input, typed: Mapping[str, Any], datatype: Datatype, count: int, model: str
) -> Array:
    if datatype.contents is None and typed:
        raise InferenceRequestInvalidError(
            f"input '{given.name}' for model '{model}' is {datatype.wire}, which travels in"
            " raw_input_contents only",
            model,
        )
    if strangers := [field for field in typed if field != datatype.contents]:
        raise InferenceRequestInvalidError(
            f"input '{given.name}' for model '{model}' is {datatype.wire}, which travels in"
            f" {datatype.contents}, not in {strangers[0]}",
            model,
        )
    values = typed.get(datatype.contents or "", ())
    if len(values) != count:
        raise InferenceRequestInvalidError(
            f"input '{given.name}' for model '{model}' has {len(values)} elements, but its shape"
            f" {shown_shape(given.shape)} needs {count}",
            model,
        )
    if datatype.is_bytes:
        return _texts(values, given.name, model)
    # Small integers travel in fields of 32 bits; excess high bits are cut off, as the proto says.
    wide = {"u": np.uint64, "i": np.int64}.get(datatype.numpy.kind, datatype.numpy)
    return np.array(values, wide).astype(datatype.numpy)
