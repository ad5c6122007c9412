"""System and CUDA shared memory through the wire: regions, tensors in them, and what is refused."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import os
from collections.abc import AsyncIterator, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from servery.inference.v1 import grpc_service_pb2 as pb
from tests.inference import graphs
from tests.inference.calling import answers, claims, failure, infer_request, stub
from tests.inference.conftest import serve_directory

Object = shared_memory.SharedMemory
OBJECTS = Path("/dev/shm")  # noqa: S108 where the system keeps them


@pytest.fixture
def shared() -> Iterator[Object]:
    """An object of shared memory, of at least 4096 bytes."""
    made = Object(create=True, size=4096)
    try:
        yield made
    finally:
        made.close()
        made.unlink()


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    graphs.store(tmp_path, "simple", graphs.add_and_subtract())
    graphs.store(tmp_path, "identity", graphs.identity("BYTES"))
    async with serve_directory(tmp_path, shared_memory=True) as channel:
        yield channel


async def register(channel: grpc.aio.Channel, shared: Object, **fields: Any) -> None:
    known: dict[str, Any] = {"name": "r", "key": f"/{shared.name}", "byte_size": 4096}
    await stub(channel).SystemSharedMemoryRegister(
        pb.SystemSharedMemoryRegisterRequest(**known | fields)
    )


async def regions(channel: grpc.aio.Channel, name: str = "") -> dict[str, tuple[str, int, int]]:
    request = pb.SystemSharedMemoryStatusRequest(name=name)
    found = (await stub(channel).SystemSharedMemoryStatus(request)).regions
    return {name: (r.key, r.offset, r.byte_size) for name, r in found.items()}


def place(parameters: Any, region: str, size: int, offset: int = 0) -> None:
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        parameters["shared_memory_offset"].int64_param = offset


def shared_request(model: str = "simple") -> pb.ModelInferRequest:
    """`a` from bytes 0 to 64 of region r, `b` in the message, `sum` to byte 64."""
    b = np.ones((1, 16), "<i4")
    request = infer_request(model, {"b": b}, ["sum", "difference"])
    request.inputs.insert(
        0, pb.ModelInferRequest.InferInputTensor(name="a", datatype="INT32", shape=[1, 16])
    )
    place(request.inputs[0].parameters, "r", 64)
    place(request.outputs[0].parameters, "r", 64, 64)
    return request


async def test_regions_come_and_go(channel: grpc.aio.Channel, shared: Object) -> None:
    assert await regions(channel) == {}
    await register(channel, shared)
    await register(channel, shared, name="s", offset=16, byte_size=32)
    assert await regions(channel) == {
        "r": (f"/{shared.name}", 0, 4096),
        "s": (f"/{shared.name}", 16, 32),
    }
    assert list(await regions(channel, "s")) == ["s"]
    for _ in range(2):  # What is gone may be forgotten again.
        await stub(channel).SystemSharedMemoryUnregister(
            pb.SystemSharedMemoryUnregisterRequest(name="r")
        )
    assert list(await regions(channel)) == ["s"]
    await stub(channel).SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest())
    assert await regions(channel) == {}
    assert (await failure(regions(channel, "s"))).code is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        pytest.param({}, grpc.StatusCode.ALREADY_EXISTS, id="twice"),
        pytest.param({"name": ""}, grpc.StatusCode.INTERNAL, id="no name"),
        pytest.param({"name": "x", "key": "/no-such"}, grpc.StatusCode.INTERNAL, id="no object"),
        pytest.param({"name": "x", "key": "../passwd"}, grpc.StatusCode.INTERNAL, id="a path"),
        pytest.param({"name": "x", "key": "/.."}, grpc.StatusCode.INTERNAL, id="a folder"),
        pytest.param({"name": "x", "byte_size": 1 << 40}, grpc.StatusCode.INTERNAL, id="large"),
        pytest.param({"name": "x", "offset": 1}, grpc.StatusCode.INTERNAL, id="beyond the end"),
        pytest.param({"name": "x", "offset": 2**64 - 1}, grpc.StatusCode.INTERNAL, id="overflow"),
        pytest.param({"name": "x", "byte_size": 0}, grpc.StatusCode.INTERNAL, id="empty"),
    ],
)
async def test_a_region_that_cannot_be(
    channel: grpc.aio.Channel, shared: Object, fields: dict[str, Any], code: grpc.StatusCode
) -> None:
    await register(channel, shared)
    assert (await failure(register(channel, shared, **fields))).code is code
    assert list(await regions(channel)) == ["r"]


async def test_a_link_is_no_object(channel: grpc.aio.Channel, shared: Object) -> None:
    link = OBJECTS / f"{shared.name}-link"
    link.symlink_to(OBJECTS / shared.name)
    try:
        error = await failure(register(channel, shared, key=link.name))
    finally:
        link.unlink()
    assert error.reason == "ERROR_REASON_REGION_INVALID"


async def test_tensors_travel_in_shared_memory(channel: grpc.aio.Channel, shared: Object) -> None:
    buffer: Any = shared.buf
    a = np.arange(16, dtype="<i4")
    buffer[:64] = a.tobytes()
    await register(channel, shared)
    response = await stub(channel).ModelInfer(shared_request())
    assert [(o.name, list(o.shape)) for o in response.outputs] == [
        ("sum", [1, 16]), ("difference", [1, 16]),
    ]  # fmt: skip
    written = response.outputs[0].parameters
    assert written["shared_memory_region"].string_param == "r"
    assert written["shared_memory_byte_size"].int64_param == 64
    assert written["shared_memory_offset"].int64_param == 64
    assert response.raw_output_contents[0] == b""
    assert np.frombuffer(response.raw_output_contents[1], "<i4").tolist() == (a - 1).tolist()
    assert np.frombuffer(bytes(buffer[64:128]), "<i4").tolist() == (a + 1).tolist()


async def test_texts_travel_in_shared_memory(channel: grpc.aio.Channel, shared: Object) -> None:
    buffer: Any = shared.buf
    raw = b"\x02\0\0\0hi\x00\0\0\0"
    buffer[: len(raw)] = raw
    await register(channel, shared)
    request = pb.ModelInferRequest(model_name="identity")
    request.inputs.add(name="x", datatype="BYTES", shape=[1, 2])
    place(request.inputs[0].parameters, "r", len(raw))
    request.outputs.add(name="y")
    place(request.outputs[0].parameters, "r", 100, 1000)
    response = await stub(channel).ModelInfer(request)
    assert response.outputs[0].parameters["shared_memory_byte_size"].int64_param == len(raw)
    assert bytes(buffer[1000 : 1000 + len(raw)]) == raw


def spoil(request: pb.ModelInferRequest, case: str) -> None:
    first, wanted = request.inputs[0].parameters, request.outputs[0].parameters
    match case:
        case "unknown region":
            first["shared_memory_region"].string_param = "other"
        case "output too small":
            wanted["shared_memory_byte_size"].int64_param = 63
        case "outside":
            first["shared_memory_offset"].int64_param = 4096
        case "input of another size":
            first["shared_memory_byte_size"].int64_param = 60
        case "negative":
            first["shared_memory_offset"].int64_param = -1
        case "no size":
            del first["shared_memory_byte_size"]
        case "no region":
            del first["shared_memory_region"]
        case "wrong kind":
            first["shared_memory_byte_size"].string_param = "64"


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("unknown region", grpc.StatusCode.NOT_FOUND),
        ("output too small", grpc.StatusCode.INTERNAL),
        ("outside", grpc.StatusCode.INTERNAL),
        ("input of another size", grpc.StatusCode.INVALID_ARGUMENT),
        ("negative", grpc.StatusCode.INVALID_ARGUMENT),
        ("no size", grpc.StatusCode.INVALID_ARGUMENT),
        ("no region", grpc.StatusCode.INVALID_ARGUMENT),
        ("wrong kind", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_tensor_that_is_not_where_the_request_says(
    channel: grpc.aio.Channel, shared: Object, case: str, code: grpc.StatusCode
) -> None:
    await register(channel, shared)
    request = shared_request()
    spoil(request, case)
    assert (await failure(stub(channel).ModelInfer(request))).code is code


async def test_an_object_that_shrinks_harms_only_its_own_request(
    channel: grpc.aio.Channel, shared: Object
) -> None:
    await register(channel, shared)
    os.truncate(OBJECTS / shared.name, 10)
    error = await failure(stub(channel).ModelInfer(shared_request()))
    assert error.reason == "ERROR_REASON_REGION_INVALID"
    assert (await stub(channel).ServerLive(pb.ServerLiveRequest())).live


async def test_only_who_runs_the_server_may_name_its_memory(
    channel: grpc.aio.Channel, shared: Object
) -> None:
    await register(channel, shared)
    metadata = claims("acme", infer=["*"], admin=["*"])
    for call in (
        stub(channel).ModelInfer(shared_request(), metadata=claims("default", infer=["*"])),
        stub(channel).SystemSharedMemoryStatus(
            pb.SystemSharedMemoryStatusRequest(), metadata=metadata
        ),
        stub(channel).CudaSharedMemoryUnregister(
            pb.CudaSharedMemoryUnregisterRequest(), metadata=metadata
        ),
    ):
        assert (await failure(call)).code is grpc.StatusCode.PERMISSION_DENIED


async def test_it_is_off_until_an_operator_enables_it(tmp_path: Path, shared: Object) -> None:
    graphs.store(tmp_path, "simple", graphs.add_and_subtract())
    async with serve_directory(tmp_path) as channel:
        # Clients begin with these two, and need no memory to be there.
        await stub(channel).SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest())
        assert await regions(channel) == {}
        refused = [
            await failure(register(channel, shared)),
            await failure(stub(channel).ModelInfer(shared_request())),
        ]
        assert [error.code for error in refused] == [grpc.StatusCode.UNIMPLEMENTED] * 2
        metadata = await stub(channel).ServerMetadata(pb.ServerMetadataRequest())
        assert "system_shared_memory" not in metadata.extensions


async def test_without_cuda_only_a_registration_is_refused(channel: grpc.aio.Channel) -> None:
    for name in ("", "unknown"):
        request = pb.CudaSharedMemoryUnregisterRequest(name=name)
        await stub(channel).CudaSharedMemoryUnregister(request)
    status = await stub(channel).CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest())
    assert not status.regions
    handle = pb.CudaSharedMemoryRegisterRequest(name="r", raw_handle=b"h" * 64, byte_size=8)
    error = await failure(stub(channel).CudaSharedMemoryRegister(handle))
    assert error.code is grpc.StatusCode.UNIMPLEMENTED


async def test_answers_are_plain_beside_those_in_memory(channel: grpc.aio.Channel) -> None:
    a = np.ones((2, 16), "<i4")
    response = await stub(channel).ModelInfer(infer_request("simple", {"a": a, "b": a}))
    assert answers(response)["sum"].tolist() == (a + a).tolist()
