"""NumPy arrays to the raw tensors of the Open Inference Protocol, and back."""

import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from servery.inference.v1 import grpc_service_pb2 as pb

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Datatypes of the protocol that NumPy has; BYTES is apart."""


def to_input(
    name: str, values: ArrayLike, datatype: str, shape: Sequence[int]
) -> tuple[pb.ModelInferRequest.InferInputTensor, bytes]:
    """Render `values` as the input `name` of a model.

    A list of n values fits an input of shape [-1, 1]: the missing last axis is added.

    Args:
        name: Of the input.
        values: Anything NumPy makes an array of.
        datatype: What the model takes, such as `FP32`; values are converted to it.
        shape: What the model takes; -1 is any size.

    Returns:
        The tensor without its data, and the data for `raw_input_contents`.

    Raises:
        ValueError: The values do not fit; the message names the input, both shapes or the value.
    """
    if datatype == "BYTES":
        array = np.asarray(values, dtype=np.object_)
    elif datatype in DTYPES:
        try:
            array = np.asarray(values, dtype=DTYPES[datatype])
        except (TypeError, ValueError) as error:
            raise ValueError(f"input {name!r} takes {datatype}: {error}") from None
    else:
        raise ValueError(f"input {name!r} takes {datatype}, which NumPy does not have")
    if array.ndim == len(shape) - 1 and shape[-1] == 1:
        array = array[..., np.newaxis]
    fits = array.ndim == len(shape) and all(
        want in (-1, got) for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"input {name!r} takes shape {list(shape)} (-1: any), not {list(array.shape)}"
        )
    raw = _pack_bytes(array) if datatype == "BYTES" else np.ascontiguousarray(array).tobytes()
    tensor = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=array.shape)
    return tensor, raw


def from_output(tensor: pb.ModelInferResponse.InferOutputTensor, raw: bytes) -> NDArray[Any]:
    """Return an output as an array: numbers read-only without a copy, BYTES as `str` objects.

    Raises:
        ValueError: The server sent a datatype that NumPy does not have.
    """
    shape = tuple(tensor.shape)
    if tensor.datatype == "BYTES":
        texts = np.empty(len(values := _unpack_bytes(raw)), dtype=np.object_)
        texts[:] = [value.decode(errors="replace") for value in values]
        return texts.reshape(shape)
    if tensor.datatype not in DTYPES:
        raise ValueError(f"output {tensor.name!r} is {tensor.datatype}, which NumPy does not have")
    return np.frombuffer(raw, DTYPES[tensor.datatype]).reshape(shape)


def _pack_bytes(array: NDArray[Any]) -> bytes:
    """Each element as its length (uint32, little-endian) and its bytes, in row-major order."""
    parts = bytearray()
    for value in array.ravel(order="C"):
        encoded = value if isinstance(value, bytes) else str(value).encode()
        parts += struct.pack("<I", len(encoded)) + encoded
    return bytes(parts)


def _unpack_bytes(raw: bytes) -> list[bytes]:
    values, at = [], 0
    while at < len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        values.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    return values
