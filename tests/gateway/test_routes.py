"""Which pool answers the calls about a model, through the real Envoy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from prometheus_client import REGISTRY
from typer.testing import CliRunner, Result

from servery.cli.__main__ import app
from servery.errors import ApiError
from servery.gateway.v1 import route_pb2 as pb
from servery.gateway.v1 import route_pb2_grpc as pb_grpc
from servery.inference.v1 import grpc_service_pb2 as oip
from servery_gateway import xds_pool
from servery_gateway.ads import SERVICE
from servery_gateway.control_plane import control_plane
from servery_gateway.snapshot import ROUTES
from tests.gateway.asking import ask
from tests.gateway.backend import Backend, backend
from tests.gateway.conftest import Stack, running_stack, settings_for
from tests.gateway.rest import RestBackend, rest_backend

pytestmark = pytest.mark.asyncio(loop_scope="session")

OIP = "/inference.GRPCInferenceService"
INFER = f"{OIP}/ModelInfer"
DIGITS = "tenants/default/models/digits"


@dataclass(frozen=True)
class Pools:
    stack: Stack
    gpu: Backend
    doors: Mapping[str, RestBackend]
    """Pool to its HTTP door."""
    spare: AsyncExitStack
    """The servers of a third pool."""

    @property
    def cpu(self) -> Backend:
        return self.stack.backends["inference"]

    @property
    def routes(self) -> Any:
        return pb_grpc.RouteServiceStub(self.stack.platform)

    async def set(self, name: str = DIGITS, mirror: str = "", **weights: int) -> pb.Route:
        route = pb.Route(name=name, mirror_pool=mirror)
        route.pools.extend(pb.WeightedPool(pool=p, weight=w) for p, w in weights.items())
        response = await self.routes.SetRoute(pb.SetRouteRequest(route=route))
        return pb.Route.FromString(response.route.SerializeToString())

    async def infer(self, token: str, model: str = "digits") -> str:
        """Call a model; return the pool that answered."""
        self.cpu.metadata.clear()
        self.gpu.metadata.clear()
        await self.stack.call(INFER, token, oip.ModelInferRequest(model_name=model))
        return "default" if self.cpu.metadata else "gpu"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pools(module_directory: Path) -> AsyncIterator[Pools]:
    settings = settings_for(
        module_directory,
        inference_http=f"unix:{module_directory}/cpu-http.sock",
        inference_pools=tuple(f"{p}=unix:{module_directory}/{p}.sock" for p in ("gpu", "spare")),
        inference_http_pools=tuple(
            f"{p}=unix:{module_directory}/{p}-http.sock" for p in ("gpu", "spare")
        ),
    )
    spare = AsyncExitStack()
    spare.enter_context(rest_backend(module_directory / "spare-http.sock"))
    await spare.enter_async_context(backend("inference", module_directory / "spare.sock"))
    with (
        rest_backend(module_directory / "cpu-http.sock") as cpu_door,
        rest_backend(module_directory / "gpu-http.sock") as gpu_door,
    ):
        doors = {"default": cpu_door, "gpu": gpu_door}
        async with (
            backend("inference", module_directory / "gpu.sock") as gpu,
            control_plane(settings),
            running_stack(settings, module_directory) as stack,
            spare,
        ):
            yield Pools(stack, gpu, doors, spare)


async def test_a_model_goes_to_its_pool_and_the_others_stay(pools: Pools) -> None:
    token = await pools.stack.token(infer=["*"])
    assert await pools.infer(token) == "default"
    await pools.set(gpu=1)
    assert await pools.infer(token) == "gpu"
    assert await pools.infer(token, "cats") == "default"
    name = oip.ModelMetadataRequest(name="digits")
    await pools.stack.call(f"{OIP}/ModelMetadata", token, name)
    assert f"{OIP}/ModelMetadata" in pools.gpu.metadata
    await pools.stack.call(
        f"{OIP}/ModelStreamInfer", token, oip.ModelInferRequest(model_name="digits")
    )
    assert f"{OIP}/ModelStreamInfer" in pools.gpu.metadata
    await pools.set()
    assert await pools.infer(token) == "default"


async def test_a_caller_cannot_choose_the_pool(pools: Pools) -> None:
    token = await pools.stack.token(infer=["cats"])
    await pools.set(gpu=1)
    pools.gpu.metadata.clear()
    await pools.stack.call(
        INFER, token, oip.ModelInferRequest(model_name="cats"), [("x-servery-model", "digits")]
    )
    assert not pools.gpu.metadata
    await pools.set()


async def test_a_canary_gets_its_share_and_no_call_fails_for_a_change(pools: Pools) -> None:
    token = await pools.stack.token(infer=["*"])
    stop = asyncio.Event()
    answered: list[str] = []

    async def call() -> None:
        while not stop.is_set():
            answered.append(await pools.infer(token))

    traffic = asyncio.create_task(call())
    for _ in range(10):
        await pools.set(default=1, gpu=1)
        await pools.set(default=3, gpu=1)
    stop.set()
    await traffic
    shares = [await pools.infer(token) for _ in range(100)]
    assert 5 <= shares.count("gpu") <= 50
    await pools.set()


async def test_a_mirror_sees_what_it_does_not_answer(pools: Pools, build: Any) -> None:
    token = await pools.stack.token(infer=["*"])
    await pools.set(default=1, mirror="gpu")
    pools.gpu.metadata.clear()
    await pools.stack.call(INFER, token, oip.ModelInferRequest(model_name="digits"))
    await build.until(lambda: asyncio.sleep(0, INFER in pools.gpu.metadata))
    await pools.set()


async def test_routes_hold_for_calls_over_rest_too(pools: Pools, build: Any) -> None:
    token = await pools.stack.token(infer=["*"])
    path = "/v2/models/digits/infer"

    async def answered_by() -> list[str]:
        for door in pools.doors.values():
            door.paths.clear()
        code, _, _ = await ask(pools.stack, "POST", path, b"{}", authorization=f"Bearer {token}")
        assert code == HTTPStatus.OK
        return [pool for pool, door in pools.doors.items() if door.paths]

    assert await answered_by() == ["default"]
    await pools.set(gpu=1)
    assert await answered_by() == ["gpu"]
    await pools.set(default=1, gpu=1)
    shares = [await answered_by() for _ in range(60)]
    assert 10 <= shares.count(["gpu"]) <= 50
    await pools.set(default=1, mirror="gpu")
    assert (await answered_by())[0] == "default"
    await build.until(lambda: asyncio.sleep(0, path in pools.doors["gpu"].paths))
    await pools.set()


async def test_a_route_is_told_as_it_was_set(pools: Pools) -> None:
    stored = await pools.set(default=9, gpu=1)
    got = await pools.routes.GetRoute(pb.GetRouteRequest(name=DIGITS))
    assert got.route == stored
    other = "tenants/default/models/zebra"
    await pools.set(other, gpu=1)
    first = await pools.routes.ListRoutes(pb.ListRoutesRequest(page_size=1))
    second = await pools.routes.ListRoutes(
        pb.ListRoutesRequest(page_size=1, page_token=first.next_page_token)
    )
    assert [r.name for r in (*first.routes, *second.routes)] == [DIGITS, other]
    assert list(first.pools) == ["default", "gpu", "spare"]
    for name in (DIGITS, other):
        await pools.set(name)
    got = await pools.routes.GetRoute(pb.GetRouteRequest(name=DIGITS))
    assert [(p.pool, p.weight) for p in got.route.pools] == [("default", 1)]
    assert not (await pools.routes.ListRoutes(pb.ListRoutesRequest())).routes


async def test_routes_by_command(pools: Pools) -> None:
    key = await pools.stack.new_key(admin=["*"])

    async def servery(*arguments: str) -> Result:
        address = pools.stack.settings.public_listen
        options = ["--address", address, "--api-key", key.secret, "routes", *arguments]
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, options))

    canary = ("--pool", "default=9", "--pool", "gpu=1", "--mirror", "gpu")
    stored = await servery("set", "digits", *canary)
    assert stored.stdout.split()[-4:] == [DIGITS, "default:90%", "gpu:10%", "gpu"]
    listed = json.loads((await servery("list", "-o", "json")).stdout)
    assert listed["pools"] == ["default", "gpu", "spare"]
    assert [route["name"] for route in listed["routes"]] == [DIGITS]
    assert (await servery("delete", DIGITS)).exit_code == 0
    assert "default:100%" in (await servery("show", "digits")).stdout
    assert (await servery("set", "digits", "--pool", "gpu=x")).exit_code == 2
    refused = await servery("set", "digits", "--pool", "tpu")
    assert isinstance(refused.exception, ApiError)
    assert refused.exception.metadata["field"] == "route.pools[0].pool"


@pytest.mark.parametrize(
    ("route", "field"),
    [
        pytest.param({"name": "digits"}, "route.name", id="no model"),
        pytest.param({"pools": [("tpu", 1)]}, "route.pools[0].pool", id="no pool"),
        pytest.param({"pools": [("gpu", 0)]}, "route.pools[0].weight", id="no weight"),
        pytest.param({"pools": [("gpu", 1), ("gpu", 2)]}, "route.pools[1].pool", id="twice"),
        pytest.param({"mirror_pool": "tpu"}, "route.mirror_pool", id="no mirror"),
    ],
)
async def test_a_malformed_route_is_refused(
    pools: Pools, route: dict[str, Any], field: str
) -> None:
    shares = [pb.WeightedPool(pool=p, weight=w) for p, w in route.pop("pools", [])]
    asked = pb.Route(**{"name": DIGITS, "pools": shares, **route})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await pools.routes.SetRoute(pb.SetRouteRequest(route=asked))
    assert ApiError.of(caught.value).metadata["field"] == field


async def test_only_administrators_of_the_platform_route(pools: Pools) -> None:
    await pools.stack.new_key("acme", admin=["*"])
    token = await pools.stack.token("acme", admin=["*"])
    path = "/servery.gateway.v1.RouteService/GetRoute"
    request = pb.GetRouteRequest(name="tenants/acme/models/a")
    error = await pools.stack.refusal(path, token, request)
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    await pools.stack.call(path, await pools.stack.token(admin=["*"]), request)


async def test_a_route_that_an_envoy_refuses_is_rolled_back(pools: Pools) -> None:
    request_class = xds_pool.message_class("envoy.service.discovery.v3.DiscoveryRequest")
    response_class = xds_pool.message_class("envoy.service.discovery.v3.DiscoveryResponse")

    def ask(**more: Any) -> Any:
        request: Any = request_class(type_url=ROUTES, resource_names=["public"])
        request.response_nonce = more.get("nonce", "")
        request.error_detail.message = more.get("refuse", "")
        if "refuse" not in more:
            request.ClearField("error_detail")
        return request

    stream: Any = pools.stack.platform.stream_stream(
        f"/{SERVICE}/StreamAggregatedResources",
        request_class.SerializeToString,
        response_class.FromString,
    )()
    await stream.write(ask())
    first = await stream.read()
    await stream.write(ask(nonce=first.nonce))
    setting = asyncio.create_task(pools.set(gpu=1))
    offered = await asyncio.wait_for(stream.read(), 5)
    await stream.write(ask(nonce=offered.nonce, refuse="no such luck"))
    back = await asyncio.wait_for(stream.read(), 5)
    assert back.version_info == first.version_info
    await stream.write(ask(nonce=back.nonce))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await setting
    error = ApiError.of(caught.value)
    assert error.code is grpc.StatusCode.FAILED_PRECONDITION
    assert error.reason == "ERROR_REASON_CONFIGURATION_REJECTED"
    assert error.metadata["problem"] == "no such luck"
    stream.cancel()
    got = await pools.routes.GetRoute(pb.GetRouteRequest(name=DIGITS))
    assert [share.pool for share in got.route.pools] == ["default"]
    assert await pools.infer(await pools.stack.token(infer=["*"])) == "default"


async def test_a_route_to_servers_that_are_not_there_is_told_so(pools: Pools, build: Any) -> None:
    route = pb.Route(name=DIGITS, pools=[pb.WeightedPool(pool="default", weight=1)])
    route.mirror_pool = "spare"

    async def warnings() -> list[pb.PoolWarning]:
        return list((await pools.routes.SetRoute(pb.SetRouteRequest(route=route))).route.warnings)

    assert not await warnings()
    await pools.spare.aclose()

    async def told() -> bool:
        return bool(await warnings())

    await build.until(told, 10)
    (warning,) = await warnings()
    assert warning.pool == "spare"
    assert warning.problem == pb.POOL_PROBLEM_NO_HEALTHY_SERVER
    labels = {"cluster": "inference-pool-spare"}
    assert REGISTRY.get_sample_value("servery_gateway_cluster_without_server", labels) == 1
    got = await pools.routes.GetRoute(pb.GetRouteRequest(name=DIGITS))
    assert list(got.route.warnings) == [warning]
    key = await pools.stack.new_key(admin=["*"])
    options = ["--address", pools.stack.settings.public_listen, "--api-key", key.secret]
    shown = await asyncio.to_thread(
        lambda: CliRunner().invoke(app, [*options, "routes", "show", "digits"])
    )
    assert warning.message in shown.stderr
    await pools.set()
    assert not (await pools.routes.GetRoute(pb.GetRouteRequest(name=DIGITS))).route.warnings
