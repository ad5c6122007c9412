"""Callers that the company's issuer vouches for, through the real Envoy."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from servery.gateway.v1 import quota_pb2, quota_pb2_grpc, usage_pb2
from servery.inference.v1 import grpc_service_pb2 as oip
from servery_gateway import issuers
from servery_gateway.control_plane import control_plane
from servery_gateway.identities import Issuer
from servery_gateway.issuers import IssuerUnavailableError, fetch_keys
from tests.gateway.oidc import AUDIENCE, OidcIssuer, oidc_issuer
from tests.gateway.test_authentication import symmetric
from tests.gateway.test_usage import counted, query, usage

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder, Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

GET_MODEL = "/servery.registry.v1.RegistryService/GetModel"
INFER = "/inference.GRPCInferenceService/ModelInfer"
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
DENIED = grpc.StatusCode.PERMISSION_DENIED

CONFIGURATION = f"""
[[issuers]]
name = "company"
issuer = "{{url}}"
audiences = ["{AUDIENCE}"]
tenant_claim = "org"
tenants = {{{{ "Example GmbH" = "acme", "Other" = "other" }}}}
roles_claim = ["groups"]
[issuers.roles]
scientists = {{{{ read = ["*"], infer = ["fraud-*"] }}}}
sales = {{{{ infer = ["quotes"] }}}}
"""


@pytest.fixture(scope="module")
def issuer() -> Iterator[OidcIssuer]:
    with oidc_issuer() as running:
        running.rotate("second", ec.generate_private_key(ec.SECP256R1()))
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def company(issuer: OidcIssuer, module_directory: Path) -> AsyncIterator[Stack]:
    from tests.gateway import conftest

    file = module_directory / "identities.toml"
    file.write_text(CONFIGURATION.format(url=issuer.url))
    settings = conftest.settings_for(module_directory, identities=file)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(issuers, "FETCH_EVERY_S", 0.2)
        async with (
            control_plane(settings),
            conftest.running_stack(settings, module_directory) as stack,
        ):

            async def known() -> bool:
                try:
                    await stack.call(GET_MODEL, issuer.token())
                except grpc.aio.AioRpcError:
                    return False
                return True

            await conftest.until(known)
            yield stack


@pytest.mark.parametrize("kid", ["first", "second"])
async def test_a_token_of_the_company_is_worth_what_its_claims_are_mapped_to(
    company: Stack, issuer: OidcIssuer, kid: str
) -> None:
    token = issuer.token(kid)
    await company.call(GET_MODEL, token)
    metadata = company.backends["registry"].metadata[GET_MODEL]
    payload = metadata["x-servery-claims"]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["tenant"] == "acme"
    assert claims["sub"] == "tenants/acme/identities/company:alice@example.org"
    assert claims["permissions"] == {"read": ["*"], "infer": ["fraud-*"]}
    assert "authorization" not in metadata
    await company.call(INFER, token, oip.ModelInferRequest(model_name="acme.fraud-eu"))
    for model in ("acme.other", "fraud-eu", "other.fraud-eu"):
        error = await company.refusal(INFER, token, oip.ModelInferRequest(model_name=model))
        assert error.code is DENIED


async def test_every_role_adds_what_it_permits(company: Stack, issuer: OidcIssuer) -> None:
    token = issuer.token(groups=["scientists", "sales", "strangers", 7])
    for model in ("acme.fraud-eu", "acme.quotes"):
        await company.call(INFER, token, oip.ModelInferRequest(model_name=model))
    spaced = issuer.token(groups="sales scientists")
    await company.call(GET_MODEL, spaced)


async def test_our_own_tokens_work_beside_them(company: Stack) -> None:
    await company.call(GET_MODEL, await company.token("acme", read=["*"]))


@pytest.mark.parametrize(
    "claims",
    [
        pytest.param({"iss": "https://evil.example.org"}, id="another issuer"),
        pytest.param({"iss": "servery"}, id="our name"),
        pytest.param({"aud": "another"}, id="another audience"),
        pytest.param({"aud": "servery"}, id="the audience of our tokens"),
        pytest.param({"aud": None}, id="no audience"),
        pytest.param({"exp": int(time.time()) - 60}, id="expired"),
        pytest.param({"exp": None}, id="never expires"),
        pytest.param({"nbf": int(time.time()) + 3600}, id="not valid yet"),
    ],
)
async def test_a_token_that_is_not_for_us_is_refused(
    company: Stack, issuer: OidcIssuer, claims: dict[str, Any]
) -> None:
    assert (await company.refusal(GET_MODEL, issuer.token(**claims))).code is UNAUTHENTICATED


@pytest.mark.parametrize(
    "claims",
    [
        pytest.param({"org": None}, id="no tenant"),
        pytest.param({"org": "Unknown Ltd"}, id="another tenant"),
        pytest.param({"org": ["Example GmbH"]}, id="a list for a tenant"),
        pytest.param({"groups": None}, id="no roles"),
        pytest.param({"groups": ["strangers"]}, id="other roles"),
        pytest.param({"groups": {"scientists": True}}, id="an object for roles"),
        pytest.param({"sub": None}, id="nobody"),
        pytest.param(
            {"tenant": "default", "permissions": {"admin": ["*"]}, "org": None}, id="ours"
        ),
    ],
)
async def test_a_token_without_what_is_mapped_says_so(
    company: Stack, issuer: OidcIssuer, claims: dict[str, Any]
) -> None:
    error = await company.refusal(GET_MODEL, issuer.token(**claims))
    assert error.code is UNAUTHENTICATED
    assert error.reason == "ERROR_REASON_IDENTITY_UNKNOWN"
    assert "operator" in error.message


@pytest.mark.parametrize("kind", ["no signature", "public key as secret", "other key", "our key"])
async def test_a_token_the_company_did_not_sign_is_refused(
    company: Stack, issuer: OidcIssuer, kind: str
) -> None:
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    pem = (
        issuer.keys["first"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    own = company.signing_key
    token = {
        "no signature": jwt.encode(claims, "", "none", headers={"kid": "first"}),
        "public key as secret": symmetric(claims, pem.decode()),
        "other key": jwt.encode(
            claims, rsa.generate_private_key(65537, 2048), "RS256", headers={"kid": "first"}
        ),
        "our key": jwt.encode(claims, own.private_key, "ES256", headers={"kid": own.jwk["kid"]}),
    }[kind]
    assert (await company.refusal(GET_MODEL, token)).code is UNAUTHENTICATED


async def test_an_issuer_cannot_sign_tokens_of_ours(company: Stack, issuer: OidcIssuer) -> None:
    claims = jwt.decode(company.forged(), options={"verify_signature": False})
    for kid, key in issuer.keys.items():
        algorithm = "RS256" if kid == "first" else "ES256"
        token = jwt.encode(claims, key, algorithm, headers={"kid": kid})
        assert (await company.refusal(GET_MODEL, token)).code is UNAUTHENTICATED


async def test_a_new_key_of_the_issuer_is_taken_up(
    company: Stack, issuer: OidcIssuer, build: Builder
) -> None:
    issuer.rotate("third")

    async def known() -> bool:
        try:
            await company.call(GET_MODEL, issuer.token("third"))
        except grpc.aio.AioRpcError:
            return False
        return True

    await build.until(known, 10)
    await company.call(GET_MODEL, issuer.token("first"))


async def test_their_calls_count_for_their_tenant(
    company: Stack, issuer: OidcIssuer, build: Builder
) -> None:
    token = issuer.token(org="Other", sub='bob "the" builder/../x')
    await company.new_key("other", read=["*"])
    await company.call(GET_MODEL, token)
    await build.until(counted(company, "other", 1))
    (row,) = await usage(company, query("tenants/other", usage_pb2.USAGE_DIMENSION_API_KEY))
    assert row.api_key == "tenants/other/identities/company:bob%20%22the%22%20builder%2F..%2Fx"
    quota = quota_pb2.Quota(name="tenants/other", requests_per_second=1)
    await quota_pb2_grpc.QuotaServiceStub(company.platform).SetQuota(
        quota_pb2.SetQuotaRequest(quota=quota)
    )
    codes = set()
    for _ in range(20):
        try:
            await company.call(GET_MODEL, token)
        except grpc.aio.AioRpcError as error:
            codes.add(error.code())
    assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}


@pytest.mark.parametrize(
    ("path", "document"),
    [
        pytest.param("/.well-known/openid-configuration", {"issuer": "other"}, id="of another"),
        pytest.param("/.well-known/openid-configuration", b"<html>", id="no JSON"),
        pytest.param("/.well-known/openid-configuration", None, id="not there"),
        pytest.param("/keys", {"keys": []}, id="no keys"),
        pytest.param("/keys", {"keys": "all"}, id="keys of a wrong type"),
        pytest.param("/keys", {"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}, id="a shared secret"),
        pytest.param("/keys", {"keys": [{"kty": "RSA", "n": "AQAB"}]}, id="half a key"),
        pytest.param("/keys", b"[" * 100_000, id="nested"),
    ],
)
async def test_keys_that_cannot_be_used_are_not(path: str, document: Any) -> None:
    with oidc_issuer() as issuer:
        known = Issuer(
            name="company",
            url=issuer.url,
            audiences=("a",),
            tenant="acme",
            tenant_claim=(),
            tenants={},
            roles_claim=("roles",),
            roles={},
        )
        assert fetch_keys(known)[0]["kid"] == "first"
        issuer.documents[path] = document
        with pytest.raises(IssuerUnavailableError):
            fetch_keys(known)


async def test_keys_come_only_from_where_nobody_can_change_them() -> None:
    with oidc_issuer() as issuer:
        known = Issuer(
            name="company",
            url=issuer.url,
            audiences=("a",),
            tenant="acme",
            tenant_claim=(),
            tenants={},
            roles_claim=("roles",),
            roles={},
        )
        for address in ("http://keys.example.org/", "file:///etc/passwd", 7):
            issuer.documents["/.well-known/openid-configuration"] = {
                "issuer": issuer.url,
                "jwks_uri": address,
            }
            with pytest.raises(IssuerUnavailableError):
                fetch_keys(known)
