"""Callers with client certificates instead of tokens, through the real Envoy."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio
from typer.testing import CliRunner, Result

from servery import Client
from servery.cli.__main__ import app
from servery.errors import ApiError
from servery.inference.v1 import grpc_service_pb2 as oip
from servery_gateway.control_plane import control_plane
from tests.gateway.certificates import Authority, write_certificate
from tests.gateway.test_usage import counted

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder, Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

GET_MODEL = "/servery.registry.v1.RegistryService/GetModel"
INFER = "/inference.GRPCInferenceService/ModelInfer"
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
WEB = "spiffe://example.org/ns/shop/sa/web"

CONFIGURATION = """
[[certificates]]
uri = "spiffe://example.org/ns/shop/*"
tenant = "acme"
permissions = { infer = ["fraud-*"] }

[[certificates]]
uri = "spiffe://example.org/ns/ops/sa/deployer"
tenant = "default"
permissions = { admin = ["*"] }
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def secured(module_directory: Path) -> AsyncIterator[Secured]:
    from tests.gateway import conftest

    chain, key = module_directory / "server.pem", module_directory / "server.key"
    write_certificate(chain, key)
    authority = Authority.new()
    ca, file = module_directory / "ca.pem", module_directory / "identities.toml"
    ca.write_bytes(authority.pem)
    file.write_text(CONFIGURATION)
    settings = conftest.settings_for(
        module_directory,
        public_tls_certificate=chain,
        public_tls_key=key,
        public_client_ca=ca,
        identities=file,
    )
    root = chain.read_bytes()
    async with (
        control_plane(settings),
        conftest.running_stack(
            settings, module_directory, grpc.ssl_channel_credentials(root)
        ) as stack,
    ):
        yield Secured(stack, authority, root)


class Secured:
    """A gateway that asks for client certificates, and who signs them."""

    def __init__(self, stack: Stack, authority: Authority, root: bytes) -> None:
        self.stack = stack
        self.authority = authority
        self.root = root

    async def call(
        self, path: str, certificate: tuple[bytes, bytes] | None, request: Any = None, **more: Any
    ) -> Any:
        """Call over a connection of its own, which shows a certificate."""
        chain, key = certificate or (None, None)
        credentials = grpc.ssl_channel_credentials(self.root, key, chain)
        address = self.stack.settings.public_listen
        async with grpc.aio.secure_channel(address, credentials) as channel:
            method: Any = channel.unary_unary(
                path, lambda message: message.SerializeToString() if message else b""
            )
            return await method(request, timeout=20, **more)

    async def refusal(self, path: str, certificate: Any, request: Any = None) -> ApiError:
        """Call what must be refused."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(path, certificate, request)
        return ApiError.of(caught.value)


async def test_a_certificate_is_worth_what_its_name_is_mapped_to(
    secured: Secured, build: Builder
) -> None:
    certificate = secured.authority.sign(WEB)
    request = oip.ModelInferRequest(model_name="acme.fraud-eu")
    spoof = [("x-servery-claims", "e30"), ("x-servery-in-flight", "tenants/acme=0")]
    await secured.call(INFER, certificate, request, metadata=spoof)
    metadata = secured.stack.backends["inference"].metadata[INFER]
    payload = metadata["x-servery-claims"]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims == {
        "tenant": "acme",
        "sub": "tenants/acme/identities/spiffe:%2F%2Fexample.org%2Fns%2Fshop%2Fsa%2Fweb",
        "permissions": {"infer": ["fraud-*"]},
    }
    assert metadata["x-servery-model"] == "acme.fraud-eu"
    assert "x-servery-in-flight" not in metadata
    for model in ("acme.cats", "fraud-eu"):
        error = await secured.refusal(INFER, certificate, oip.ModelInferRequest(model_name=model))
        assert error.code is grpc.StatusCode.PERMISSION_DENIED
    assert (
        await secured.refusal(GET_MODEL, certificate)
    ).reason == "ERROR_REASON_PERMISSION_DENIED"
    await build.until(counted(secured.stack, "acme", 4))


@pytest.mark.parametrize(
    "uris",
    [
        pytest.param(("spiffe://example.org/ns/other/sa/web",), id="another name"),
        pytest.param(("spiffe://evil.org/ns/shop/sa/web",), id="another domain"),
        pytest.param(("spiffe://example.org/ns/ops/sa/deployer2",), id="a longer name"),
        pytest.param((), id="no name"),
        pytest.param((WEB, "spiffe://example.org/ns/ops/sa/deployer"), id="two names"),
    ],
)
async def test_a_certificate_of_nobody_known_is_refused(
    secured: Secured, uris: tuple[str, ...]
) -> None:
    error = await secured.refusal(GET_MODEL, secured.authority.sign(*uris))
    assert error.code is UNAUTHENTICATED
    assert error.reason == "ERROR_REASON_IDENTITY_UNKNOWN"


async def test_without_a_certificate_a_token_is_needed(secured: Secured) -> None:
    error = await secured.refusal(GET_MODEL, None)
    assert error.code is UNAUTHENTICATED
    assert "ExchangeApiKey" in error.message
    await secured.call("/grpc.health.v1.Health/Check", None)
    token = await secured.stack.token(read=["*"])
    bearer = [("authorization", f"Bearer {token}")]
    await secured.call(GET_MODEL, None, metadata=bearer)
    await secured.call(GET_MODEL, secured.authority.sign(WEB), metadata=bearer)  # It counts.


async def test_a_bad_token_is_not_saved_by_a_certificate(secured: Secured) -> None:
    request = oip.ModelInferRequest(model_name="acme.fraud-eu")
    for token in ("a.b.c", secured.stack.forged(iss="someone"), secured.stack.forged(exp=1)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await secured.call(
                INFER,
                secured.authority.sign(WEB),
                request,
                metadata=[("authorization", f"Bearer {token}")],
            )
        assert caught.value.code() is UNAUTHENTICATED


@pytest.mark.parametrize("kind", ["another authority", "expired"])
async def test_a_certificate_that_is_not_good_gets_no_connection(
    secured: Secured, kind: str
) -> None:
    authority = Authority.new() if kind == "another authority" else secured.authority
    certificate = authority.sign(WEB, expired=kind == "expired")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await secured.call(INFER, certificate, oip.ModelInferRequest(model_name="acme.fraud-eu"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_sdk_shows_certificates(secured: Secured) -> None:
    chain, key = secured.authority.sign("spiffe://example.org/ns/ops/sa/deployer")

    def tenants() -> list[str]:
        with Client(
            secured.stack.settings.public_listen,
            certificate_chain=chain,
            private_key=key,
            root_certificates=secured.root,
        ) as client:
            return [tenant.name for tenant in client.tenants.list()]

    assert "tenants/default" in await asyncio.to_thread(tenants)


async def test_a_resumed_connection_is_worth_as_much_as_the_first(
    secured: Secured, module_directory: Path
) -> None:
    """Its certificate is not shown again."""
    chain, key = secured.authority.sign("spiffe://example.org/ns/ops/sa/deployer")
    for name, pem in (("client.pem", chain), ("client.key", key), ("root.pem", secured.root)):
        (module_directory / name).write_bytes(pem)
    context = ssl.create_default_context(cafile=str(module_directory / "root.pem"))
    context.load_cert_chain(module_directory / "client.pem", module_directory / "client.key")
    address = secured.stack.settings.public_address

    def ask(session: ssl.SSLSession | None) -> tuple[bytes, ssl.SSLSession | None, bool]:
        with (
            socket.create_connection((address.host, address.port)) as plain,
            context.wrap_socket(plain, server_hostname=address.host, session=session) as secure,
        ):
            request = "GET /v1/tenants HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            secure.sendall(request.encode())
            answer = secure.recv(100)
            return answer, secure.session, bool(secure.session_reused)

    answer, session, reused = await asyncio.to_thread(ask, None)
    assert answer.startswith(b"HTTP/1.1 200")
    assert not reused
    answer, _, reused = await asyncio.to_thread(ask, session)
    assert reused
    assert answer.startswith(b"HTTP/1.1 200")


async def test_a_certificate_is_revoked_by_its_name(secured: Secured) -> None:
    key = await secured.stack.new_key(admin=["*"])
    root = secured.stack.directory / "server.pem"
    options = ["--address", secured.stack.settings.public_listen, "--ca", str(root)]

    async def servery(*arguments: str) -> Result:
        argv = [*options, "--api-key", key.secret, "identities", *arguments, "--tenant", "acme"]
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, argv))

    request = oip.ModelInferRequest(model_name="acme.fraud-eu")
    name = "tenants/acme/identities/spiffe:%2F%2Fexample.org%2Fns%2Fshop%2Fsa%2Fweb"
    assert (await servery("revoke", WEB)).stdout.split()[0] == name
    error = await secured.refusal(INFER, secured.authority.sign(WEB), request)
    assert error.reason == "ERROR_REASON_IDENTITY_REVOKED"
    await secured.call(INFER, secured.authority.sign(f"{WEB}2"), request)
    listed = json.loads((await servery("list", "-o", "json")).stdout)
    assert [identity["name"] for identity in listed] == [name]
    assert (await servery("restore", WEB)).exit_code == 0
    await secured.call(INFER, secured.authority.sign(WEB), request)
