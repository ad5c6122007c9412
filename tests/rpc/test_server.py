"""The chassis through a real channel: errors, health, reflection, drain, tokens of the caller."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from servery.errors import ApiError
from servery.errors.v1 import error_reason_pb2 as reasons
from servery.registry.v1 import registry_pb2 as pb
from servery.registry.v1 import registry_pb2_grpc as pb_grpc
from servery_rpc.errors import FieldInvalidError, ServeryError
from servery_rpc.identity import CLAIMS_HEADER, caller_of
from servery_rpc.server import RunningServer, Service, serving
from servery_rpc.settings import ServerSettings

NAME = "servery.registry.v1.RegistryService"


class BusyError(ServeryError):
    """A failure that may pass."""

    reason = reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    retry_after_ms = 40


class Probe(pb_grpc.RegistryServiceServicer):
    """Stands in for any service of ours: each RPC shows one thing the chassis does."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.release = asyncio.Event()

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        if request.name == "bug":
            raise RuntimeError("secret detail of the server")
        if request.name == "slow":
            self.entered.set()
            await self.release.wait()
        if request.name == "bad":
            raise FieldInvalidError("name", request.name, "match x")
        if request.name == "later":
            raise BusyError("come back later", service="x")
        caller_of(context).require("read", "acme", "digits")
        return pb.GetModelResponse(model=pb.Model(name=request.name))

    async def WatchModels(
        self, request: pb.WatchModelsRequest, context: Any
    ) -> AsyncIterator[pb.WatchModelsResponse]:
        yield pb.WatchModelsResponse(snapshot_complete=True)
        raise FieldInvalidError("resume_token", request.resume_token, "be one of ours")

    async def RegisterVersion(
        self, request_iterator: AsyncIterator[pb.RegisterVersionRequest], context: Any
    ) -> pb.RegisterVersionResponse:
        count = sum([1 async for _ in request_iterator])
        return pb.RegisterVersionResponse(version=pb.Version(name=str(count)))


def service(probe: Probe) -> Service:
    return Service(
        NAME, lambda server: pb_grpc.add_RegistryServiceServicer_to_server(probe, server)
    )


@pytest.fixture
async def running() -> AsyncIterator[RunningServer]:
    async with serving(ServerSettings(drain_s=0), service(probe())) as server:
        yield server


@pytest.fixture
async def channel(running: RunningServer) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(running.address) as channel:
        yield channel


def probe() -> Probe:
    return Probe()  # type: ignore[abstract]  # The other RPCs are not called.


async def failure(call: Any) -> ApiError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return ApiError.of(caught.value)


async def test_a_domain_error_reaches_the_caller_with_its_reason(channel: grpc.aio.Channel) -> None:
    stub = pb_grpc.RegistryServiceStub(channel)
    error = await failure(stub.GetModel(pb.GetModelRequest(name="bad")))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "ERROR_REASON_FIELD_INVALID"
    assert error.metadata == {"field": "name", "value": "bad", "rule": "match x"}


async def test_a_failure_that_may_pass_says_when_to_retry(channel: grpc.aio.Channel) -> None:
    call = pb_grpc.RegistryServiceStub(channel).GetModel(pb.GetModelRequest(name="later"))
    error = await failure(call)
    assert error.reason == "ERROR_REASON_DEPENDENCY_UNAVAILABLE"
    assert ("grpc-retry-pushback-ms", "40") in list(await call.trailing_metadata())


async def test_a_bug_tells_the_caller_nothing(channel: grpc.aio.Channel) -> None:
    stub = pb_grpc.RegistryServiceStub(channel)
    error = await failure(
        stub.GetModel(pb.GetModelRequest(name="bug"), metadata=[("x-request-id", "r-17")])
    )
    assert error.code is grpc.StatusCode.INTERNAL
    assert "secret" not in error.message
    assert "r-17" in error.message


async def test_a_stream_fails_with_its_reason_after_what_it_sent(channel: grpc.aio.Channel) -> None:
    call: Any = pb_grpc.RegistryServiceStub(channel).WatchModels(pb.WatchModelsRequest())
    assert (await call.read()).snapshot_complete
    error = await failure(call.read())
    assert error.reason == "ERROR_REASON_FIELD_INVALID"


@pytest.mark.parametrize("method", ["GetModel", "WatchModels", "RegisterVersion"])
async def test_garbage_is_the_callers_fault(channel: grpc.aio.Channel, method: str) -> None:
    path = f"/{NAME}/{method}"
    untyped: Any = channel
    if method == "GetModel":
        error = await failure(untyped.unary_unary(path)(b"\xff\xff"))
    elif method == "WatchModels":
        error = await failure(untyped.unary_stream(path)(b"\xff\xff").read())
    else:
        error = await failure(untyped.stream_unary(path)(iter([b"\xff\xff"])))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "ERROR_REASON_FIELD_INVALID"


async def test_a_client_stream_arrives_whole(channel: grpc.aio.Channel) -> None:
    stub = pb_grpc.RegistryServiceStub(channel)
    parts = [pb.RegisterVersionRequest(chunk=b"x") for _ in range(3)]
    assert (await stub.RegisterVersion(iter(parts))).version.name == "3"


@pytest.mark.parametrize(
    ("tenant", "permissions", "allowed"),
    [
        pytest.param("acme", {"read": ["digits"]}, True, id="exact"),
        pytest.param("acme", {"read": ["dig*"]}, True, id="prefix"),
        pytest.param("acme", {"read": ["*"]}, True, id="all"),
        pytest.param("acme", {"read": ["cats"]}, False, id="another model"),
        pytest.param("acme", {"infer": ["*"]}, False, id="another verb"),
        pytest.param("other", {"read": ["*"]}, False, id="another tenant"),
        pytest.param("acme", {}, False, id="nothing"),
    ],
)
async def test_claims_decide(
    channel: grpc.aio.Channel, tenant: str, permissions: dict[str, list[str]], allowed: bool
) -> None:
    claims = {"tenant": tenant, "permissions": permissions, "sub": "tenants/x/apiKeys/k"}
    header = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    call = pb_grpc.RegistryServiceStub(channel).GetModel(
        pb.GetModelRequest(name="m"), metadata=[(CLAIMS_HEADER, header)]
    )
    if allowed:
        await call
    else:
        error = await failure(call)
        assert error.code is grpc.StatusCode.PERMISSION_DENIED
        assert error.metadata["resource"] == "tenants/acme/models/digits"


async def test_health_is_watched_per_service(
    running: RunningServer, channel: grpc.aio.Channel
) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=NAME))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    await running.set_ready(NAME, ready=False)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_describes_services_and_itself(
    channel: grpc.aio.Channel, version: str
) -> None:
    reflect = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    itself = f"grpc.reflection.{version}.ServerReflection"
    call: Any = reflect(
        iter(
            [
                reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol=NAME),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol=itself),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.Such"),
            ]
        )
    )
    names = {s.name for s in (await call.read()).list_services_response.service}
    assert {NAME, itself, "grpc.health.v1.Health"} <= names
    assert (await call.read()).file_descriptor_response.file_descriptor_proto
    assert (await call.read()).file_descriptor_response.file_descriptor_proto
    assert (await call.read()).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_a_running_call_finishes_while_the_server_drains() -> None:
    stub = probe()
    async with serving(ServerSettings(drain_s=10), service(stub)) as running:
        channel = grpc.aio.insecure_channel(running.address)
        call = asyncio.ensure_future(
            pb_grpc.RegistryServiceStub(channel).GetModel(pb.GetModelRequest(name="slow"))
        )
        await asyncio.wait_for(stub.entered.wait(), 5)
        asyncio.get_running_loop().call_later(0.2, stub.release.set)
    assert (await call).model.name == "slow"
    await channel.close()


async def test_a_unix_socket_is_this_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    async with serving(
        ServerSettings(listen=f"unix:{path}", drain_s=0), service(probe())
    ) as server:
        assert path.stat().st_mode & 0o077 == 0
        async with grpc.aio.insecure_channel(server.address) as channel:
            await pb_grpc.RegistryServiceStub(channel).GetModel(pb.GetModelRequest(name="m"))


async def test_two_servers_never_share_a_port(running: RunningServer) -> None:
    with pytest.raises(RuntimeError):
        async with serving(ServerSettings(listen=running.address), service(probe())):
            pass
