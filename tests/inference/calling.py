"""A client of the inference service, as thin as the contract."""

from __future__ import annotations  # The async stub exists only in the .pyi.

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import pytest

from servery.errors import ApiError
from servery.inference.v1 import grpc_service_pb2 as pb
from servery.inference.v1 import grpc_service_pb2_grpc as pb_grpc
from servery_rpc.identity import CLAIMS_HEADER
from tests.inference.graphs import Array

DTYPES = {
    "BOOL": "bool",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
_WIRE = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def stub(channel: grpc.aio.Channel) -> pb_grpc.GRPCInferenceServiceAsyncStub:
    return pb_grpc.GRPCInferenceServiceStub(channel)


def raw(array: Array) -> bytes:
    """The raw layout of an array; objects and texts are BYTES."""
    if array.dtype.kind in "OU":
        elements = [
            element if isinstance(element, bytes) else str(element).encode()
            for element in array.ravel()
        ]
        return b"".join(len(element).to_bytes(4, "little") + element for element in elements)
    return array.tobytes()


def datatype(array: Array) -> str:
    return "BYTES" if array.dtype.kind in "OU" else _WIRE[array.dtype]


def infer_request(
    model: str, inputs: Mapping[str, Array], outputs: Sequence[str] = (), **fields: Any
) -> pb.ModelInferRequest:
    tensors = [
        pb.ModelInferRequest.InferInputTensor(
            name=name, datatype=datatype(array), shape=array.shape
        )
        for name, array in inputs.items()
    ]
    wanted = [pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs]
    return pb.ModelInferRequest(
        model_name=model,
        inputs=tensors,
        outputs=wanted,
        raw_input_contents=[raw(array) for array in inputs.values()],
        **fields,
    )


def answers(response: pb.ModelInferResponse) -> dict[str, Array]:
    """The outputs of a response by name, in its order."""
    arrays: dict[str, Array] = {}
    for output, data in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            flat = np.array(_elements(data), object)
        else:
            flat = np.frombuffer(data, DTYPES[output.datatype])
        arrays[output.name] = flat.reshape(tuple(output.shape))
    return arrays


def _elements(data: bytes) -> list[bytes]:
    elements, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        elements.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return elements


def claims(tenant: str, **permissions: list[str]) -> list[tuple[str, str]]:
    """The header by which Envoy tells who calls."""
    payload = {"tenant": tenant, "permissions": permissions, "sub": f"tenants/{tenant}/apiKeys/k"}
    return [(CLAIMS_HEADER, base64.urlsafe_b64encode(json.dumps(payload).encode()).decode())]


async def failure(call: Any) -> ApiError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return ApiError.of(caught.value)


async def index(channel: grpc.aio.Channel) -> dict[tuple[str, str], tuple[str, str]]:
    """State and reason of every version in the repository index."""
    response = await stub(channel).RepositoryIndex(pb.RepositoryIndexRequest())
    return {(m.name, m.version): (m.state, m.reason) for m in response.models}
