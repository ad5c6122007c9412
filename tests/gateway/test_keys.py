"""Tenants and keys through the control plane's own socket."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

import grpc
import jwt
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from servery.errors import ApiError
from servery.gateway.v1 import gateway_pb2 as pb
from servery.gateway.v1 import gateway_pb2_grpc as pb_grpc
from servery_gateway.control_plane import control_plane

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder, Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

EXCHANGE = "/servery.gateway.v1.AuthService/ExchangeApiKey"
GET_MODEL = "/servery.registry.v1.RegistryService/GetModel"
READ_ALL = pb.Permission(verb=pb.VERB_READ, models=["*"])


async def refusal(call: Any) -> ApiError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return ApiError.of(caught.value)


def keys(stack: Stack) -> pb_grpc.ApiKeyServiceAsyncStub:
    return pb_grpc.ApiKeyServiceStub(stack.platform)


def tenants(stack: Stack) -> pb_grpc.TenantServiceAsyncStub:
    return pb_grpc.TenantServiceStub(stack.platform)


async def test_the_default_tenant_always_exists(stack: Stack) -> None:
    response = await tenants(stack).GetTenant(pb.GetTenantRequest(name="tenants/default"))
    assert response.tenant.name == "tenants/default"
    assert response.tenant.HasField("create_time")


async def test_a_tenant_is_created_once(stack: Stack) -> None:
    request = pb.CreateTenantRequest(
        tenant=pb.Tenant(name="tenants/once", display_name="Once & for all")
    )
    created = await tenants(stack).CreateTenant(request)
    got = await tenants(stack).GetTenant(pb.GetTenantRequest(name="tenants/once"))
    assert got.tenant == created.tenant
    error = await refusal(tenants(stack).CreateTenant(request))
    assert error.code is grpc.StatusCode.ALREADY_EXISTS
    assert error.reason == "ERROR_REASON_TENANT_EXISTS"
    assert error.metadata == {"name": "tenants/once"}


async def test_tenants_are_listed_by_name_page_by_page(stack: Stack) -> None:
    for name in ("page-b", "page-a"):
        request = pb.CreateTenantRequest(tenant=pb.Tenant(name=f"tenants/{name}"))
        await tenants(stack).CreateTenant(request)
    names, token = [], ""
    while True:
        page = await tenants(stack).ListTenants(
            pb.ListTenantsRequest(page_size=1, page_token=token)
        )
        names += [tenant.name for tenant in page.tenants]
        token = page.next_page_token
        if not token:
            break
    assert names == sorted(names)
    assert {"tenants/default", "tenants/page-a", "tenants/page-b"} <= set(names)


async def test_keys_are_listed_the_newest_first_page_by_page(stack: Stack) -> None:
    created = [(await stack.new_key("lister", read=["*"])).api_key for _ in range(3)]
    first = await keys(stack).ListApiKeys(
        pb.ListApiKeysRequest(parent="tenants/lister", page_size=2)
    )
    assert list(first.api_keys) == [created[2], created[1]]
    rest = await keys(stack).ListApiKeys(
        pb.ListApiKeysRequest(parent="tenants/lister", page_token=first.next_page_token)
    )
    assert list(rest.api_keys) == [created[0]]
    assert not rest.next_page_token
    error = await refusal(
        keys(stack).ListApiKeys(
            pb.ListApiKeysRequest(parent="tenants/default", page_token=first.next_page_token)
        )
    )
    assert error.metadata["field"] == "page_token"


async def test_a_secret_is_long_shown_once_and_nowhere_on_disk(stack: Stack) -> None:
    key = await stack.new_key(infer=["digits", "fraud-*"])
    assert key.secret.startswith("sk-")
    assert len(base64.urlsafe_b64decode(key.secret[3:] + "=")) == 32
    for path in stack.settings.data_dir.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0
        if path.is_dir():
            continue
        content = await asyncio.to_thread(path.read_bytes)
        assert key.secret.encode() not in content
        assert key.secret[3:].encode() not in content


async def test_an_exchange_says_what_the_token_permits(stack: Stack) -> None:
    key = await stack.new_key("acme", infer=["digits", "fraud-*"], read=["*"])
    response = await pb_grpc.AuthServiceStub(stack.channel).ExchangeApiKey(
        pb.ExchangeApiKeyRequest(api_key=key.secret)
    )
    assert response.tenant == "tenants/acme"
    assert list(response.permissions) == list(key.api_key.permissions)
    assert 0 < response.valid_for.seconds <= 900


@pytest.mark.parametrize(
    ("key", "field"),
    [
        pytest.param(pb.ApiKey(), "api_key.permissions", id="no permission"),
        pytest.param(
            pb.ApiKey(permissions=[pb.Permission(models=["*"])]),
            "api_key.permissions[0].verb",
            id="no verb",
        ),
        pytest.param(
            pb.ApiKey(permissions=[READ_ALL, READ_ALL]),
            "api_key.permissions[1].verb",
            id="a verb twice",
        ),
        pytest.param(
            pb.ApiKey(permissions=[pb.Permission(verb=pb.VERB_READ)]),
            "api_key.permissions[0].models",
            id="no model",
        ),
        pytest.param(
            pb.ApiKey(permissions=[pb.Permission(verb=pb.VERB_READ, models=["a", "*b"])]),
            "api_key.permissions[0].models[1]",
            id="a star in front",
        ),
        pytest.param(
            pb.ApiKey(permissions=[pb.Permission(verb=pb.VERB_READ, models=["a"] * 101)]),
            "api_key.permissions[0].models",
            id="too many models",
        ),
        pytest.param(
            pb.ApiKey(
                permissions=[
                    pb.Permission(verb=pb.VERB_READ, models=[f"{'m' * 60}{i}" for i in range(99)])
                ]
            ),
            "api_key.permissions",
            id="more than a header holds",
        ),
        pytest.param(
            pb.ApiKey(permissions=[READ_ALL], display_name="x" * 201),
            "api_key.display_name",
            id="a long name",
        ),
        pytest.param(
            pb.ApiKey(permissions=[READ_ALL], expire_time=Timestamp(seconds=1)),
            "api_key.expire_time",
            id="expired",
        ),
        pytest.param(
            pb.ApiKey(permissions=[READ_ALL], expire_time=Timestamp(seconds=1 << 60)),
            "api_key.expire_time",
            id="no time",
        ),
    ],
)
async def test_a_malformed_key_is_refused(stack: Stack, key: pb.ApiKey, field: str) -> None:
    request = pb.CreateApiKeyRequest(parent="tenants/default", api_key=key)
    error = await refusal(keys(stack).CreateApiKey(request))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "ERROR_REASON_FIELD_INVALID"
    assert error.metadata["field"] == field


async def test_what_is_not_there_is_not_found(stack: Stack) -> None:
    key = pb.ApiKey(permissions=[READ_ALL])
    for call in (
        keys(stack).CreateApiKey(pb.CreateApiKeyRequest(parent="tenants/no", api_key=key)),
        keys(stack).ListApiKeys(pb.ListApiKeysRequest(parent="tenants/no")),
        tenants(stack).GetTenant(pb.GetTenantRequest(name="tenants/no")),
    ):
        assert (await refusal(call)).reason == "ERROR_REASON_TENANT_NOT_FOUND"
    mine = (await stack.new_key("acme", read=["*"])).api_key.name
    for name in ("tenants/default/apiKeys/0", mine.replace("acme", "default")):
        error = await refusal(keys(stack).RevokeApiKey(pb.RevokeApiKeyRequest(name=name)))
        assert error.reason == "ERROR_REASON_API_KEY_NOT_FOUND"
        assert error.metadata == {"name": name}


@pytest.mark.parametrize(
    ("tenant", "of_acme", "of_default", "of_tenants"),
    [
        pytest.param("acme", True, False, False, id="a tenant's administrator"),
        pytest.param("default", True, True, True, id="the platform's administrator"),
    ],
)
async def test_administrators_stay_in_their_tenant(
    stack: Stack, tenant: str, of_acme: bool, of_default: bool, of_tenants: bool
) -> None:
    await stack.new_key("acme", read=["*"])
    token = await stack.token(tenant, admin=["*"])
    service = "/servery.gateway.v1.ApiKeyService/ListApiKeys"
    for path, request, allowed in (
        (service, pb.ListApiKeysRequest(parent="tenants/acme"), of_acme),
        (service, pb.ListApiKeysRequest(parent="tenants/default"), of_default),
        ("/servery.gateway.v1.TenantService/ListTenants", None, of_tenants),
    ):
        if allowed:
            await stack.call(path, token, request)
        else:
            error = await stack.refusal(path, token, request)
            assert error.reason == "ERROR_REASON_PERMISSION_DENIED"
            assert error.metadata == {"verb": "admin", "resource": "tenants/default"}


async def test_a_key_outlives_the_process_and_so_does_its_token(
    build: Builder, own_directory: Any
) -> None:
    settings = build.settings_for(own_directory)
    async with control_plane(settings), grpc.aio.insecure_channel(settings.listen) as channel:
        created = await pb_grpc.ApiKeyServiceStub(channel).CreateApiKey(
            pb.CreateApiKeyRequest(
                parent="tenants/default", api_key=pb.ApiKey(permissions=[READ_ALL])
            )
        )
        before = await exchange(channel, created.secret)
    async with control_plane(settings), grpc.aio.insecure_channel(settings.listen) as channel:
        after = await exchange(channel, created.secret)
    assert header(before) == header(after)


async def exchange(channel: grpc.aio.Channel, secret: str) -> str:
    response = await pb_grpc.AuthServiceStub(channel).ExchangeApiKey(
        pb.ExchangeApiKeyRequest(api_key=secret)
    )
    return response.access_token


def header(token: str) -> Any:
    part = token.split(".")[0]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def permission(verb: str, *models: str) -> pb.Permission:
    return pb.Permission(verb=pb.Verb.Value(f"VERB_{verb.upper()}"), models=models)


async def test_a_token_may_have_less_than_its_key(stack: Stack) -> None:
    key = await stack.new_key("narrow", infer=["fraud-*", "digits"], read=["*"])
    request = pb.ExchangeApiKeyRequest(
        api_key=key.secret,
        permissions=[permission("infer", "fraud-eu-*", "digits")],
        valid_for=Duration(seconds=30),
    )
    answer = await stack.call(EXCHANGE, None, request)
    assert list(answer.permissions) == list(request.permissions)
    assert answer.valid_for.seconds == 30
    claims = jwt.decode(answer.access_token, options={"verify_signature": False})
    assert claims["permissions"] == {"infer": ["fraud-eu-*", "digits"]}
    assert claims["exp"] - claims["iat"] == 30
    error = await stack.refusal(GET_MODEL, answer.access_token)
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    await stack.call(GET_MODEL, await stack.exchange(key.secret))


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(permission("train", "digits"), id="another verb"),
        pytest.param(permission("infer", "cats"), id="another model"),
        pytest.param(permission("infer", "fraud*"), id="a wider pattern"),
        pytest.param(permission("infer", "*"), id="all models"),
        pytest.param(permission("infer", "digits*"), id="more than the one model"),
    ],
)
async def test_a_token_has_no_more_than_its_key(stack: Stack, wanted: pb.Permission) -> None:
    key = await stack.new_key("narrow", infer=["fraud-*", "digits"])
    request = pb.ExchangeApiKeyRequest(api_key=key.secret, permissions=[wanted])
    error = await stack.refusal(EXCHANGE, None, request)
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    assert error.reason == "ERROR_REASON_PERMISSION_DENIED"
    assert error.metadata["resource"] == f"tenants/narrow/models/{wanted.models[0]}"


@pytest.mark.parametrize("seconds", [0, -5, 601, 1 << 50])
async def test_a_token_is_valid_neither_for_no_time_nor_for_long(
    stack: Stack, seconds: int
) -> None:
    key = await stack.new_key("narrow", infer=["*"])
    request = pb.ExchangeApiKeyRequest(api_key=key.secret, valid_for=Duration(seconds=seconds))
    assert (await stack.refusal(EXCHANGE, None, request)).metadata["field"] == "valid_for"
