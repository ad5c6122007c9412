"""The other RPCs through a real channel: metadata, readiness, the index, and who may see what."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from servery.inference.v1 import grpc_service_pb2 as pb
from tests.inference import graphs
from tests.inference.calling import claims, failure, index, infer_request, stub
from tests.inference.conftest import serve_directory

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
DENIED = grpc.StatusCode.PERMISSION_DENIED


async def test_the_server_is_live_and_ready(channel: grpc.aio.Channel) -> None:
    assert (await stub(channel).ServerLive(pb.ServerLiveRequest())).live
    assert (await stub(channel).ServerReady(pb.ServerReadyRequest())).ready


@pytest.mark.parametrize("service", ["", SERVICE.full_name])
async def test_health_says_serving(channel: grpc.aio.Channel, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    response = await health_pb2_grpc.HealthStub(channel).Check(request)
    assert response.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_server_names_its_release_and_what_it_can(channel: grpc.aio.Channel) -> None:
    metadata = await stub(channel).ServerMetadata(pb.ServerMetadataRequest())
    assert (metadata.name, metadata.version) == ("servery", version("servery"))
    assert "shared_memory" not in str(metadata.extensions)


async def test_metadata_describes_the_tensors(channel: grpc.aio.Channel) -> None:
    metadata = await stub(channel).ModelMetadata(pb.ModelMetadataRequest(name="simple"))
    assert metadata.name == "simple"
    assert metadata.versions == ["1"]
    assert metadata.platform == "onnxruntime_onnx"
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [
        ("a", "INT32", [-1, 16]),
        ("b", "INT32", [-1, 16]),
    ]
    assert [t.name for t in metadata.outputs] == ["sum", "difference"]


@pytest.mark.parametrize(
    ("name", "number", "code"),
    [
        ("nope", "", grpc.StatusCode.NOT_FOUND),
        ("simple", "9", grpc.StatusCode.NOT_FOUND),
        ("simple", "abc", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_metadata_of_what_is_not_there(
    channel: grpc.aio.Channel, name: str, number: str, code: grpc.StatusCode
) -> None:
    request = pb.ModelMetadataRequest(name=name, version=number)
    assert (await failure(stub(channel).ModelMetadata(request))).code is code


@pytest.mark.parametrize(
    ("name", "number", "ready"),
    [("simple", "", True), ("simple", "1", True), ("simple", "9", False), ("nope", "", False)],
)
async def test_a_model_is_ready_or_not_but_never_an_error(
    channel: grpc.aio.Channel, name: str, number: str, *, ready: bool
) -> None:
    request = pb.ModelReadyRequest(name=name, version=number)
    assert (await stub(channel).ModelReady(request)).ready is ready


async def test_a_version_that_is_no_number_is_refused(channel: grpc.aio.Channel) -> None:
    error = await failure(
        stub(channel).ModelReady(pb.ModelReadyRequest(name="simple", version="abc"))
    )
    assert error.reason == "ERROR_REASON_INFERENCE_REQUEST_INVALID"


async def test_an_index_of_another_repository_is_unimplemented(channel: grpc.aio.Channel) -> None:
    request = pb.RepositoryIndexRequest(repository_name="other")
    error = await failure(stub(channel).RepositoryIndex(request))
    assert error.reason == "ERROR_REASON_UNSUPPORTED"


async def test_every_method_of_the_contract_is_there(channel: grpc.aio.Channel) -> None:
    untyped: Any = channel
    absent = []
    for method in SERVICE.methods:
        path = f"/{SERVICE.full_name}/{method.name}"
        if method.client_streaming:
            call = untyped.stream_stream(path)(iter([b""]))
            assert len([message async for message in call]) == 1
        else:
            call = untyped.unary_unary(path)(b"")
        if await call.code() is grpc.StatusCode.UNIMPLEMENTED:
            absent.append(method.name)
    # Without a GPU and without --shared-memory.
    assert absent == ["SystemSharedMemoryRegister", "CudaSharedMemoryRegister"]


CALLS = ("ModelInfer", "ModelMetadata", "ModelReady")


async def call(channel: grpc.aio.Channel, method: str, model: str, metadata: Any) -> Any:
    requests: dict[str, Any] = {
        "ModelInfer": infer_request(model, {"x": np.zeros((1, 2), "<f4")}),
        "ModelMetadata": pb.ModelMetadataRequest(name=model),
        "ModelReady": pb.ModelReadyRequest(name=model),
    }
    return await getattr(stub(channel), method)(requests[method], metadata=metadata)


@pytest.mark.parametrize("method", CALLS)
async def test_the_gateway_lets_a_call_through_for_one_model_only(
    channel: grpc.aio.Channel, method: str
) -> None:
    await call(channel, method, "identity_fp32", [("x-servery-model", "identity_fp32")])
    error = await failure(call(channel, method, "identity_fp32", [("x-servery-model", "dense")]))
    assert (error.code, error.reason) == (DENIED, "ERROR_REASON_PERMISSION_DENIED")
    long_name = await failure(call(channel, method, "m" * 100_000, [("x-servery-model", "dense")]))
    assert long_name.code is DENIED


@pytest.mark.parametrize(
    ("tenant", "permissions", "allowed"),
    [
        pytest.param("acme", {"infer": ["plus"]}, CALLS, id="infer"),
        pytest.param("acme", {"infer": ["pl*"]}, CALLS, id="infer by prefix"),
        pytest.param("acme", {"read": ["*"]}, CALLS[1:], id="read"),
        pytest.param("acme", {"train": ["*"], "publish": ["*"]}, (), id="other verbs"),
        pytest.param("acme", {"infer": ["minus"]}, (), id="another model"),
        pytest.param("default", {"infer": ["*"]}, (), id="another tenant"),
    ],
)
async def test_claims_decide(
    tmp_path: Path, tenant: str, permissions: dict[str, list[str]], allowed: tuple[str, ...]
) -> None:
    graphs.store(tmp_path, "acme.plus", graphs.plus(1))
    graphs.store(tmp_path, "plus", graphs.plus(2))
    metadata = claims(tenant, **permissions)
    async with serve_directory(tmp_path) as channel:
        for method in CALLS:
            if method in allowed:
                await call(channel, method, "acme.plus", metadata)
            else:
                error = await failure(call(channel, method, "acme.plus", metadata))
                assert error.metadata["resource"] == "tenants/acme/models/plus"


async def test_the_index_hides_what_a_caller_may_not_see(tmp_path: Path) -> None:
    for name in ("acme.plus", "acme.minus", "plus"):
        graphs.store(tmp_path, name, graphs.plus(1))
    async with serve_directory(tmp_path) as channel:
        response = await stub(channel).RepositoryIndex(
            pb.RepositoryIndexRequest(), metadata=claims("acme", infer=["pl*"], read=["x"])
        )
        assert [m.name for m in response.models] == ["acme.plus"]
        assert len(await index(channel)) == 3
