"""Arrays to requests and back, with nothing but the contract."""

from __future__ import annotations  # The async stub exists only in the .pyi.

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import grpc
import ml_dtypes
import numpy as np

from servery.inference.v1 import grpc_service_pb2 as pb
from servery.inference.v1 import grpc_service_pb2_grpc as pb_grpc
from tests.inference.graphs import Array

DATATYPES: Final = {
    np.dtype(np.bool_): "BOOL",
    np.dtype(np.uint8): "UINT8",
    np.dtype(np.uint16): "UINT16",
    np.dtype(np.uint32): "UINT32",
    np.dtype(np.uint64): "UINT64",
    np.dtype(np.int8): "INT8",
    np.dtype(np.int16): "INT16",
    np.dtype(np.int32): "INT32",
    np.dtype(np.int64): "INT64",
    np.dtype(np.float16): "FP16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.float32): "FP32",
    np.dtype(np.float64): "FP64",
    np.dtype(object): "BYTES",
}
"""Names that the Open Inference Protocol has for what an array holds; BYTES are texts here."""

_NUMPY: Final = {name: dtype for dtype, name in DATATYPES.items()}


async def ask(
    channel: grpc.aio.Channel, model: str, inputs: Mapping[str, Array], outputs: Sequence[str] = ()
) -> dict[str, Array]:
    """Call a model; return its outputs by name."""
    stub: pb_grpc.GRPCInferenceServiceAsyncStub = pb_grpc.GRPCInferenceServiceStub(channel)
    plain = {name: _plain(array) for name, array in inputs.items()}
    request = pb.ModelInferRequest(
        model_name=model,
        inputs=[
            pb.ModelInferRequest.InferInputTensor(
                name=name, datatype=DATATYPES[array.dtype], shape=array.shape
            )
            for name, array in plain.items()
        ],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
        raw_input_contents=[_raw(array) for array in plain.values()],
    )
    return _answers(await stub.ModelInfer(request, timeout=60))


def _plain(array: Array) -> Array:
    """Texts may come as arrays of fixed width."""
    return array.astype(object) if array.dtype.kind == "U" else array


def _raw(array: Array) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    texts = [str(element).encode() for element in array.ravel()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def _answers(response: pb.ModelInferResponse) -> dict[str, Array]:
    answers: dict[str, Array] = {}
    for output, data in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            flat = np.array(list(_texts(data)), object)
        else:
            flat = np.frombuffer(data, _NUMPY[output.datatype])
        answers[output.name] = flat.reshape(tuple(output.shape))
    return answers


def _texts(data: bytes) -> Iterator[str]:
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        yield data[at + 4 : at + 4 + length].decode()
        at += 4 + length
