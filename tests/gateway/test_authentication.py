"""Who is let in, through the real Envoy: tokens, their forgeries, and revoked keys."""

from __future__ import annotations

import base64
import hmac
import json
import time
from typing import TYPE_CHECKING, Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.timestamp_pb2 import Timestamp

from servery.errors import ApiError
from servery.gateway.v1 import gateway_pb2 as pb
from servery.gateway.v1 import gateway_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from tests.gateway.conftest import Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

GET_MODEL = "/servery.registry.v1.RegistryService/GetModel"
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


async def test_without_a_token_nothing_but_the_public_methods_answers(stack: Stack) -> None:
    error = await stack.refusal(GET_MODEL)
    assert error.code is UNAUTHENTICATED
    assert "ExchangeApiKey" in error.message
    await stack.call("/grpc.health.v1.Health/Check")


@pytest.mark.parametrize(
    "claims",
    [
        pytest.param({"exp": int(time.time()) - 60}, id="expired"),
        pytest.param({"exp": None}, id="never expires"),
        pytest.param({"iss": "someone"}, id="another issuer"),
        pytest.param({"aud": "another"}, id="another audience"),
        pytest.param({"aud": None}, id="no audience"),
        pytest.param({"nbf": int(time.time()) + 3600}, id="not valid yet"),
    ],
)
async def test_a_token_with_the_wrong_claims_is_refused(
    stack: Stack, claims: dict[str, Any]
) -> None:
    assert (await stack.refusal(GET_MODEL, stack.forged(**claims))).code is UNAUTHENTICATED


async def test_the_same_token_with_the_right_claims_is_accepted(stack: Stack) -> None:
    await stack.call(GET_MODEL, stack.forged())


@pytest.mark.parametrize("kind", ["garbage", "no signature", "public key as secret", "other key"])
async def test_a_token_we_did_not_sign_is_refused(stack: Stack, kind: str) -> None:
    claims = jwt.decode(stack.forged(), options={"verify_signature": False})
    key_id = {"kid": stack.signing_key.jwk["kid"]}
    token = {
        "garbage": "a.b.c",
        "no signature": jwt.encode(claims, "", "none", headers=key_id),
        "public key as secret": symmetric(claims, json.dumps(dict(stack.signing_key.jwk))),
        "other key": stack.forged(ec.generate_private_key(ec.SECP256R1())),
    }[kind]
    assert (await stack.refusal(GET_MODEL, token)).code is UNAUTHENTICATED


def symmetric(claims: dict[str, Any], secret: str) -> str:
    """Sign with HS256, which no library does with the text of a public key any more."""
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = hmac.digest(secret.encode(), text, "sha256")
    return (text + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


async def test_a_token_that_was_changed_is_refused(stack: Stack) -> None:
    header, payload, signature = (await stack.token(infer=["digits"])).split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    claims["permissions"]["read"] = ["*"]
    changed = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    error = await stack.refusal(GET_MODEL, f"{header}.{changed}.{signature}")
    assert error.code is UNAUTHENTICATED


async def test_a_token_in_the_query_does_not_count(stack: Stack) -> None:
    token = await stack.token(read=["*"])
    call: Any = stack.channel.unary_unary(f"{GET_MODEL}?access_token={token}")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"")
    assert caught.value.code() is UNAUTHENTICATED


async def test_the_server_behind_learns_who_calls_and_not_with_which_token(stack: Stack) -> None:
    key = await stack.new_key("acme", read=["dig*"])
    await stack.call(GET_MODEL, await stack.exchange(key.secret))
    metadata = stack.backends["registry"].metadata[GET_MODEL]
    payload = metadata["x-servery-claims"]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["sub"] == key.api_key.name
    assert claims["tenant"] == "acme"
    assert claims["permissions"] == {"read": ["dig*"]}
    assert 0 < claims["exp"] - claims["iat"] <= 900
    assert "authorization" not in metadata


async def test_headers_of_the_platform_are_taken_off_what_comes_in(stack: Stack) -> None:
    claims = {"tenant": "default", "permissions": {"admin": ["*"]}, "sub": "tenants/default"}
    spoofed = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()
    spoof = [
        ("x-servery-claims", spoofed),
        ("x-servery-tenant", "default"),
        ("x-servery-caller", "tenants/default/apiKeys/x"),
        ("x-servery-model", "secret"),
        ("x-servery-allowed", "tenants/default"),
        ("x-servery-other", "x"),
        ("x-envoy-retry-on", "5xx"),
    ]
    await stack.call(GET_MODEL, await stack.token("acme", read=["*"]), metadata=spoof)
    metadata = stack.backends["registry"].metadata[GET_MODEL]
    assert metadata["x-servery-claims"] != spoofed
    assert metadata["x-servery-tenant"] == metadata["x-servery-allowed"].removeprefix("tenants/")
    assert metadata["x-servery-tenant"] == "acme"
    taken_off = {"x-servery-model", "x-servery-other", "x-servery-door", "x-envoy-retry-on"}
    assert not taken_off & set(metadata)
    health = "/grpc.health.v1.Health/Check"
    await stack.call(health, metadata=spoof)
    tenants = pb_grpc.TenantServiceStub(stack.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tenants.ListTenants(pb.ListTenantsRequest(), metadata=spoof)
    assert caught.value.code() is UNAUTHENTICATED
    refused = [*spoof, ("authorization", f"Bearer {await stack.token(read=['*'])}")]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tenants.ListTenants(pb.ListTenantsRequest(), metadata=refused)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_header_with_an_underscore_is_refused(stack: Stack) -> None:
    """Some servers read `x_servery_claims` as `x-servery-claims`."""
    with pytest.raises(grpc.aio.AioRpcError):
        await stack.call(
            GET_MODEL, await stack.token(read=["*"]), metadata=[("x_servery_claims", "e30")]
        )


async def test_a_revoked_key_stops_its_live_token_at_once(stack: Stack) -> None:
    key, other = await stack.new_key(read=["*"]), await stack.token(read=["*"])
    token = await stack.exchange(key.secret)
    await stack.call(GET_MODEL, token)
    keys = pb_grpc.ApiKeyServiceStub(stack.platform)
    start = time.monotonic()
    revoked = await keys.RevokeApiKey(pb.RevokeApiKeyRequest(name=key.api_key.name))
    error = await stack.refusal(GET_MODEL, token)
    assert time.monotonic() - start < 2
    assert error.code is UNAUTHENTICATED
    assert error.reason == "ERROR_REASON_API_KEY_INVALID"
    assert revoked.api_key.HasField("revoke_time")
    await stack.call(GET_MODEL, other)
    again = await keys.RevokeApiKey(pb.RevokeApiKeyRequest(name=key.api_key.name))
    assert again.api_key.revoke_time == revoked.api_key.revoke_time


async def test_unknown_revoked_and_expired_keys_are_told_the_same(stack: Stack) -> None:
    keys = pb_grpc.ApiKeyServiceStub(stack.platform)
    revoked, expiring = await stack.new_key(read=["*"]), await stack.new_key(read=["*"])
    await keys.RevokeApiKey(pb.RevokeApiKeyRequest(name=revoked.api_key.name))
    soon = Timestamp()
    soon.FromNanoseconds(time.time_ns() + 200_000_000)
    expiring = await keys.CreateApiKey(
        pb.CreateApiKeyRequest(
            parent="tenants/default",
            api_key=pb.ApiKey(
                permissions=[pb.Permission(verb=pb.VERB_READ, models=["*"])], expire_time=soon
            ),
        )
    )
    errors = set()
    for secret in ("sk-unknown", "", revoked.secret, expiring.secret):
        while True:  # Until the last one has expired.
            try:
                await stack.exchange(secret)
            except grpc.aio.AioRpcError as caught:
                error = ApiError.of(caught)
                errors.add((error.code, error.reason, error.message))
                break
    assert len(errors) == 1
    code, reason, _ = errors.pop()
    assert (code, reason) == (UNAUTHENTICATED, "ERROR_REASON_API_KEY_INVALID")
