"""How often tenants and keys may call, through the real Envoy."""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc.error_details_pb2 import QuotaFailure, RetryInfo
from grpc_status import rpc_status

from servery.errors import ApiError
from servery.gateway.v1 import quota_pb2 as pb
from servery.gateway.v1 import quota_pb2_grpc as pb_grpc
from servery_gateway.control_plane import control_plane

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder, Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

READY = "/inference.GRPCInferenceService/ServerReady"
SET = "/servery.gateway.v1.QuotaService/SetQuota"
GET = "/servery.gateway.v1.QuotaService/GetQuota"
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


async def set_quota(stack: Stack, name: str, **limits: int) -> None:
    stub = pb_grpc.QuotaServiceStub(stack.platform)
    await stub.SetQuota(pb.SetQuotaRequest(quota=pb.Quota(name=name, **limits)))


async def outcomes(stack: Stack, token: str, calls: int) -> list[grpc.aio.AioRpcError | None]:
    ended: list[grpc.aio.AioRpcError | None] = []
    for _ in range(calls):
        try:
            await stack.call(READY, token)
            ended.append(None)
        except grpc.aio.AioRpcError as error:
            ended.append(error)
    return ended


def limited(stack: Stack, token: str) -> Callable[[], Awaitable[bool]]:
    async def refused() -> bool:
        (end,) = await outcomes(stack, token, 1)
        return end is not None and end.code() is EXHAUSTED

    return refused


async def test_a_tenant_beyond_its_rate_is_told_when_to_try_again(stack: Stack) -> None:
    token = await stack.token("hasty", infer=["*"])
    other = await stack.token("calm", infer=["*"])
    await set_quota(stack, "tenants/hasty", requests_per_second=3)
    ended = await outcomes(stack, token, 30)
    refused = [error for error in ended if error is not None]
    assert refused
    assert ended[:3] == [None] * 3
    error = ApiError.of(refused[0])
    assert error.code is EXHAUSTED
    assert error.reason == "ERROR_REASON_QUOTA_EXCEEDED"
    assert error.metadata == {"limit": "requests_per_second"}
    status: Any = rpc_status.from_call(refused[0])
    retry, failure = RetryInfo(), QuotaFailure()
    assert any(detail.Unpack(retry) for detail in status.details)
    assert any(detail.Unpack(failure) for detail in status.details)
    assert retry.retry_delay.seconds == 1
    assert failure.violations[0].subject == "requests_per_second"
    assert await outcomes(stack, other, 10) == [None] * 10


async def test_the_rate_of_a_key_is_its_own_and_can_be_lifted(stack: Stack) -> None:
    first, second = [await stack.new_key("keyed", infer=["*"]) for _ in range(2)]
    tokens = [await stack.exchange(key.secret) for key in (first, second)]
    await set_quota(stack, first.api_key.name, requests_per_second=2)
    assert any(await outcomes(stack, tokens[0], 20))
    assert not any(await outcomes(stack, tokens[1], 20))
    await set_quota(stack, first.api_key.name)
    assert not any(await outcomes(stack, tokens[0], 20))


@pytest.mark.parametrize("of", ["tenant", "key"])
async def test_a_day_that_is_used_up_ends_at_midnight(
    build: Builder, own_directory: Path, of: str
) -> None:
    settings = build.settings_for(own_directory)
    ahead = datetime.timedelta()

    def now() -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC) + ahead

    async with control_plane(settings, now), build.running_stack(settings, own_directory) as own:
        key = await own.new_key("daily", infer=["*"])
        token = await own.exchange(key.secret)
        name = "tenants/daily" if of == "tenant" else key.api_key.name
        await set_quota(own, name, requests_per_day=5)
        assert not any(await outcomes(own, token, 5))
        assert await build.until(limited(own, token)) < 2
        error = await own.refusal(READY, token)
        assert error.metadata == {"limit": "requests_per_day"}
        stub = pb_grpc.QuotaServiceStub(own.platform)
        response = await stub.GetQuota(pb.GetQuotaRequest(name=name))
        assert response.quota.requests_per_day == 5
        assert response.requests_today >= 5
        ahead = datetime.timedelta(days=1)

        async def free() -> bool:
            return await outcomes(own, token, 1) == [None]

        await build.until(free)


async def test_inference_learns_how_much_may_be_in_flight(stack: Stack) -> None:
    """What it makes of that, its own tests tell."""
    key, other = [await stack.new_key("crowded", infer=["*"]) for _ in range(2)]
    tokens = [await stack.exchange(each.secret) for each in (key, other)]
    await set_quota(stack, "tenants/crowded", requests_in_flight=8)
    await set_quota(stack, key.api_key.name, requests_in_flight=2)
    spoof = [("x-servery-in-flight", "tenants/crowded=1000")]
    told = []
    for token in (*tokens, await stack.token("roomy", infer=["*"])):
        await stack.call(READY, token, metadata=spoof)
        told.append(stack.backends["inference"].metadata[READY].get("x-servery-in-flight"))
    assert told == [
        f"tenants/crowded=8,{key.api_key.name}=2",
        "tenants/crowded=8",
        None,
    ]
    await set_quota(stack, "tenants/crowded")
    await set_quota(stack, key.api_key.name)
    await stack.call(READY, tokens[0])
    assert "x-servery-in-flight" not in stack.backends["inference"].metadata[READY]


async def test_keys_are_not_guessed_faster_than_one_address_may(
    build: Builder, own_directory: Path
) -> None:
    settings = build.settings_for(own_directory, key_exchanges_per_minute=5)
    async with control_plane(settings), build.running_stack(settings, own_directory) as own:
        codes = []
        for _ in range(8):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await own.exchange("sk-guess")
            codes.append(caught.value.code())
        assert codes[:5] == [grpc.StatusCode.UNAUTHENTICATED] * 5
        assert codes[-1] is EXHAUSTED
        assert ApiError.of(caught.value).metadata == {"limit": "key_exchanges"}


async def test_every_tenant_gets_a_bucket_of_its_own(build: Builder, own_directory: Path) -> None:
    settings = build.settings_for(own_directory, tenant_requests_per_second=3)
    async with control_plane(settings), build.running_stack(settings, own_directory) as own:
        tokens = [await own.token(tenant, infer=["*"]) for tenant in ("one", "two")]
        await set_quota(own, "tenants/two", requests_per_second=100)
        assert any(await outcomes(own, tokens[0], 20))
        assert not any(await outcomes(own, tokens[1], 20))


@pytest.mark.parametrize(
    ("quota", "field"),
    [
        pytest.param({"name": "acme"}, "quota.name", id="no owner"),
        pytest.param({"requests_per_second": -1}, "quota.requests_per_second", id="negative"),
        pytest.param({"requests_per_second": 1_000_001}, "quota.requests_per_second", id="more"),
        pytest.param({"requests_in_flight": -1}, "quota.requests_in_flight", id="negative places"),
        pytest.param({"requests_per_day": -1}, "quota.requests_per_day", id="negative day"),
    ],
)
async def test_a_malformed_quota_is_refused(
    stack: Stack, quota: dict[str, Any], field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await set_quota(stack, **{"name": "tenants/default", **quota})
    assert ApiError.of(caught.value).metadata["field"] == field


async def test_only_who_exists_has_a_quota(stack: Stack) -> None:
    for name, reason in (
        ("tenants/nobody", "ERROR_REASON_TENANT_NOT_FOUND"),
        ("tenants/default/apiKeys/0", "ERROR_REASON_API_KEY_NOT_FOUND"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await set_quota(stack, name, requests_per_day=1)
        assert ApiError.of(caught.value).reason == reason


async def test_a_tenant_reads_its_quota_and_cannot_lift_it(stack: Stack) -> None:
    key = await stack.new_key("bounded", admin=["*"])
    token = await stack.exchange(key.secret)
    await stack.call(GET, token, pb.GetQuotaRequest(name="tenants/bounded"))
    own_key = pb.SetQuotaRequest(quota=pb.Quota(name=key.api_key.name))
    await stack.call(SET, token, own_key)
    request = pb.SetQuotaRequest(quota=pb.Quota(name="tenants/bounded"))
    assert (await stack.refusal(SET, token, request)).code is grpc.StatusCode.PERMISSION_DENIED
    foreign = pb.GetQuotaRequest(name="tenants/default")
    assert (await stack.refusal(GET, token, foreign)).code is grpc.StatusCode.PERMISSION_DENIED
