"""The datatypes of the Open Inference Protocol, and what ONNX Runtime and NumPy call them.

NumPy has no BF16: its elements are held as the 16 bits they are.
"""

from __future__ import annotations  # Values of enums have a type in the stubs only.

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from servery.inference.v1 import model_config_pb2 as pb


@dataclass(frozen=True, slots=True)
class Datatype:
    """One kind of tensor element."""

    wire: str
    """Name on the wire, such as `FP32`."""

    onnx: str
    """How ONNX Runtime writes the type of a tensor of it, such as `tensor(float)`."""

    numpy: np.dtype[Any]
    """Little endian; object, holding `str`, for BYTES; the bits alone if not `is_numpy`."""

    contents: str | None
    """The field of `InferTensorContents` that carries it; None if it travels raw only."""

    is_numpy: bool = True
    """Whether NumPy knows the type."""

    @property
    def config(self) -> pb.DataType.ValueType:
        """What model configurations call it, such as `TYPE_FP32`."""
        return pb.DataType.Value(f"TYPE_{'STRING' if self.wire == 'BYTES' else self.wire}")

    @property
    def is_bytes(self) -> bool:
        """Whether elements have lengths of their own, so that shape does not tell the size."""
        return self.numpy.kind == "O"


BYTES: Final = Datatype("BYTES", "tensor(string)", np.dtype(object), "bytes_contents")
BFLOAT16: Final = Datatype("BF16", "tensor(bfloat16)", np.dtype("<u2"), None, is_numpy=False)

DATATYPES: Final = (
    Datatype("BOOL", "tensor(bool)", np.dtype(np.bool_), "bool_contents"),
    Datatype("UINT8", "tensor(uint8)", np.dtype("u1"), "uint_contents"),
    Datatype("UINT16", "tensor(uint16)", np.dtype("<u2"), "uint_contents"),
    Datatype("UINT32", "tensor(uint32)", np.dtype("<u4"), "uint_contents"),
    Datatype("UINT64", "tensor(uint64)", np.dtype("<u8"), "uint64_contents"),
    Datatype("INT8", "tensor(int8)", np.dtype("i1"), "int_contents"),
    Datatype("INT16", "tensor(int16)", np.dtype("<i2"), "int_contents"),
    Datatype("INT32", "tensor(int32)", np.dtype("<i4"), "int_contents"),
    Datatype("INT64", "tensor(int64)", np.dtype("<i8"), "int64_contents"),
    Datatype("FP16", "tensor(float16)", np.dtype("<f2"), None),
    Datatype("FP32", "tensor(float)", np.dtype("<f4"), "fp32_contents"),
    Datatype("FP64", "tensor(double)", np.dtype("<f8"), "fp64_contents"),
    BFLOAT16,
    BYTES,
)

BY_ONNX: Final = {datatype.onnx: datatype for datatype in DATATYPES}
BY_CONFIG: Final = {datatype.config: datatype for datatype in DATATYPES}
