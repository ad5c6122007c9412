"""Identities without a key: refused by an administrator, and limited, through the real Envoy."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
import pytest_asyncio

from servery.errors import ApiError
from servery.gateway.v1 import identity_pb2 as pb
from servery.gateway.v1 import identity_pb2_grpc as pb_grpc
from servery.gateway.v1 import quota_pb2, quota_pb2_grpc, usage_pb2
from servery.inference.v1 import grpc_service_pb2 as oip
from servery_gateway.control_plane import control_plane
from tests.gateway.asking import ask
from tests.gateway.oidc import OidcIssuer, oidc_issuer
from tests.gateway.test_company import CONFIGURATION
from tests.gateway.test_usage import query, usage

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder, Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

GET_MODEL = "/servery.registry.v1.RegistryService/GetModel"
INFER = "/inference.GRPCInferenceService/ModelInfer"
REVOKE = "/servery.gateway.v1.IdentityService/RevokeIdentity"
ALICE = "tenants/acme/identities/company:alice@example.org"
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture(scope="module")
def issuer() -> Iterator[OidcIssuer]:
    with oidc_issuer() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def company(issuer: OidcIssuer, module_directory: Path) -> AsyncIterator[Stack]:
    from tests.gateway import conftest

    file = module_directory / "identities.toml"
    file.write_text(CONFIGURATION.format(url=issuer.url))
    settings = conftest.settings_for(module_directory, identities=file)
    async with (
        control_plane(settings),
        conftest.running_stack(settings, module_directory) as stack,
    ):

        async def known() -> bool:
            return await code(stack, issuer.token()) is None

        await conftest.until(known)
        yield stack


async def code(stack: Stack, token: str) -> grpc.StatusCode | None:
    """Call; return how it failed, or None."""
    try:
        await stack.call(GET_MODEL, token)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return None


def identities(stack: Stack) -> pb_grpc.IdentityServiceAsyncStub:
    return pb_grpc.IdentityServiceStub(stack.platform)


async def revoked(stack: Stack) -> list[str]:
    request = pb.ListRevokedIdentitiesRequest(parent="tenants/acme")
    response = await identities(stack).ListRevokedIdentities(request)
    return [identity.name for identity in response.identities]


async def test_a_revoked_identity_is_refused_at_once_until_it_is_restored(
    company: Stack, issuer: OidcIssuer
) -> None:
    alice, bob = issuer.token(), issuer.token(sub="bob")
    stop = asyncio.Event()
    refused_at: list[float] = []

    async def call() -> None:
        while not stop.is_set():
            if await code(company, alice) is UNAUTHENTICATED:
                refused_at.append(time.monotonic())

    traffic = asyncio.create_task(call())
    start = time.monotonic()
    response = await identities(company).RevokeIdentity(pb.RevokeIdentityRequest(name=ALICE))
    assert await code(company, alice) is UNAUTHENTICATED
    stop.set()
    await traffic
    assert refused_at[0] - start < 2
    assert response.identity.name == ALICE
    error = await company.refusal(GET_MODEL, issuer.token(groups=["sales"]))  # Another token.
    assert error.reason == "ERROR_REASON_IDENTITY_REVOKED"
    assert error.metadata == {"identity": ALICE}
    assert await code(company, bob) is None
    again = await identities(company).RevokeIdentity(pb.RevokeIdentityRequest(name=ALICE))
    assert again.identity.revoke_time == response.identity.revoke_time
    assert await revoked(company) == [ALICE]
    await identities(company).RestoreIdentity(pb.RestoreIdentityRequest(name=ALICE))
    assert await code(company, alice) is None
    assert not await revoked(company)
    log = await asyncio.to_thread((company.settings.data_dir / "audit.jsonl").read_text)
    acts = [json.loads(line) for line in log.splitlines()]
    mine = [act["act"] for act in acts if act["request"].get("name") == ALICE]
    assert mine == ["RevokeIdentity", "RevokeIdentity", "RestoreIdentity"]


async def test_their_refused_calls_are_counted(
    company: Stack, issuer: OidcIssuer, build: Builder
) -> None:
    name = "tenants/acme/identities/company:mallory%20%22x%22"
    await identities(company).RevokeIdentity(pb.RevokeIdentityRequest(name=name))
    token = issuer.token(sub='mallory "x"')
    assert await code(company, token) is UNAUTHENTICATED
    dimensions = (usage_pb2.USAGE_DIMENSION_API_KEY, usage_pb2.USAGE_DIMENSION_CODE)

    async def is_counted() -> bool:
        rows = await usage(company, query("tenants/acme", *dimensions))
        return [(r.code, r.requests) for r in rows if r.api_key == name] == [(16, 1)]

    await build.until(is_counted)


async def test_revoking_over_json(company: Stack, issuer: OidcIssuer) -> None:
    key = await company.token("acme", admin=["*"])
    token = issuer.token(sub="eve/1")
    path = "/v1/tenants/acme/identities/company:eve%252F1"
    status, _, body = await ask(
        company, "POST", f"{path}:revoke", b"{}", authorization=f"Bearer {key}"
    )
    assert (status, json.loads(body)["identity"]["name"]) == (
        200,
        "tenants/acme/identities/company:eve%2F1",
    )
    for door in ("/v1/tenants/acme/models", "/v2/health/live"):
        status, _, body = await ask(company, "GET", door, authorization=f"Bearer {token}")
        assert status == 401
        assert b"revoked" in body
    await ask(company, "POST", f"{path}:restore", b"{}", authorization=f"Bearer {key}")
    assert await code(company, token) is None


async def test_who_may_revoke_whom(company: Stack) -> None:
    async def outcome(tenant: str, name: str) -> str | None:
        token = await company.token(tenant, admin=["*"])
        try:
            await company.call(REVOKE, token, pb.RevokeIdentityRequest(name=name))
        except grpc.aio.AioRpcError as error:
            return ApiError.of(error).reason
        return None

    mine = "tenants/acme/identities/company:nobody"
    assert await outcome("acme", mine) is None
    assert await outcome("default", mine) is None
    assert await outcome("other", mine) == "ERROR_REASON_PERMISSION_DENIED"
    nobody = "tenants/none/identities/company:x"
    assert await outcome("default", nobody) == "ERROR_REASON_TENANT_NOT_FOUND"
    for name in ("", "company:x", "tenants/acme/identities/a b", "tenants/acme/identities/a/b"):
        assert await outcome("default", name) == "ERROR_REASON_FIELD_INVALID"


async def set_quota(stack: Stack, name: str, **limits: int) -> None:
    stub = quota_pb2_grpc.QuotaServiceStub(stack.platform)
    await stub.SetQuota(quota_pb2.SetQuotaRequest(quota=quota_pb2.Quota(name=name, **limits)))


async def test_quotas_of_the_tenant_and_of_the_identity_hold(
    company: Stack, issuer: OidcIssuer, build: Builder
) -> None:
    carol = "tenants/acme/identities/company:carol"
    await set_quota(company, carol, requests_per_second=2, requests_in_flight=1)
    await set_quota(company, "tenants/acme", requests_in_flight=3)
    request = oip.ModelInferRequest(model_name="acme.fraud-eu")
    told = []
    for subject in ("carol", "dave"):
        await company.call(INFER, issuer.token(sub=subject), request)
        told.append(company.backends["inference"].metadata[INFER]["x-servery-in-flight"])
    assert told == [f"tenants/acme=3,{carol}=1", "tenants/acme=3"]
    codes = {await code(company, issuer.token(sub="carol")) for _ in range(20)}
    assert EXHAUSTED in codes
    assert {await code(company, issuer.token(sub="dave")) for _ in range(20)} == {None}
    await set_quota(company, carol)
    await set_quota(company, "tenants/acme", requests_per_day=1)

    async def spent() -> bool:
        return await code(company, issuer.token(sub="dave")) is EXHAUSTED

    await build.until(spent)
    await set_quota(company, "tenants/acme")
    assert await code(company, issuer.token(sub="dave")) is None
