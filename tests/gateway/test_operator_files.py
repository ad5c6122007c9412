"""What the operator's files say comes into use while the gateway runs; nothing is interrupted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio

from servery.errors import ApiError
from servery_gateway.control_plane import control_plane
from servery_gateway.operator_files import Followed
from tests.gateway.certificates import Authority, write_certificate
from tests.gateway.oidc import AUDIENCE, OidcIssuer, oidc_issuer

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder, Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

GET_MODEL = "/servery.registry.v1.RegistryService/GetModel"
READY = "/inference.GRPCInferenceService/ServerReady"
WEB = "spiffe://example.org/web"

CERTIFICATE = f"""
[[certificates]]
uri = "{WEB}"
tenant = "acme"
permissions = {{ read = ["*"] }}
"""
ISSUER = f"""
[[issuers]]
name = "{{name}}"
issuer = "{{url}}"
audiences = ["{AUDIENCE}"]
tenant = "{{tenant}}"
roles_claim = "groups"
[issuers.roles]
scientists = {{{{ read = ["*"] }}}}
"""


def replace(path: Path, content: str | bytes) -> None:
    draft = path.with_suffix(".draft")
    draft.write_bytes(content.encode() if isinstance(content, str) else content)
    draft.replace(path)


class Gateway:
    """A gateway whose files change."""

    def __init__(self, stack: Stack, ca: Path, identities: Path, root: bytes) -> None:
        self.stack = stack
        self.ca = ca
        self.identities = identities
        self.root = root

    def connect(self, certificate: tuple[bytes, bytes]) -> grpc.aio.Channel:
        chain, key = certificate
        credentials = grpc.ssl_channel_credentials(self.root, key, chain)
        return grpc.aio.secure_channel(self.stack.settings.public_listen, credentials)

    async def by_certificate(self, certificate: tuple[bytes, bytes]) -> str:
        """Call over a connection of its own; return how it ended."""
        async with self.connect(certificate) as channel:
            return await outcome(channel)

    async def by_token(self, token: str) -> str:
        return await outcome(self.stack.channel, token)


async def outcome(channel: grpc.aio.Channel, token: str | None = None) -> str:
    method: Any = channel.unary_unary(GET_MODEL)
    try:
        await method(
            b"", timeout=20, metadata=[("authorization", f"Bearer {token}")] if token else []
        )
    except grpc.aio.AioRpcError as error:
        return ApiError.of(error).reason or error.code().name
    return "OK"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(module_directory: Path) -> AsyncIterator[Gateway]:
    from tests.gateway import conftest

    chain, key = module_directory / "server.pem", module_directory / "server.key"
    write_certificate(chain, key)
    ca, identities = module_directory / "ca.pem", module_directory / "identities.toml"
    ca.write_bytes(Authority.new().pem)
    identities.write_text("")
    settings = conftest.settings_for(
        module_directory,
        public_tls_certificate=chain,
        public_tls_key=key,
        public_client_ca=ca,
        identities=identities,
    )
    root = chain.read_bytes()
    trust = grpc.ssl_channel_credentials(root)
    async with (
        control_plane(settings),
        conftest.running_stack(settings, module_directory, trust) as stack,
    ):
        yield Gateway(stack, ca, identities, root)


async def test_whom_certificates_name_and_who_signs_them_can_change(
    gateway: Gateway, build: Builder
) -> None:
    first, second = Authority.new("first"), Authority.new("second")
    old, new = first.sign(WEB), second.sign(WEB)

    async def becomes(certificate: tuple[bytes, bytes], expected: str) -> None:
        async def is_so() -> bool:
            return await gateway.by_certificate(certificate) == expected

        await build.until(is_so, 10)

    async def keep_calling() -> None:
        token = await gateway.stack.token(infer=["*"])
        while True:
            await gateway.stack.call(READY, token)

    traffic = asyncio.create_task(keep_calling())
    replace(gateway.ca, first.pem)
    await becomes(old, "UNAUTHENTICATED")  # A connection, but nobody who is known.
    replace(gateway.identities, CERTIFICATE)
    await becomes(old, "OK")
    async with gateway.connect(old) as open_before:
        assert await outcome(open_before) == "OK"
        replace(gateway.ca, first.pem + second.pem)
        await becomes(new, "OK")
        assert await gateway.by_certificate(old) == "OK"
        replace(gateway.ca, second.pem)
        await becomes(old, "UNAVAILABLE")  # No connection.
        assert await gateway.by_certificate(new) == "OK"
        assert await outcome(open_before) == "OK"
        replace(gateway.identities, CERTIFICATE.replace("read", "infer"))
        await becomes(new, "ERROR_REASON_PERMISSION_DENIED")
        assert await outcome(open_before) == "ERROR_REASON_PERMISSION_DENIED"
    assert not traffic.done()
    traffic.cancel()


async def test_issuers_come_and_go(gateway: Gateway, build: Builder) -> None:
    def described(issuer: OidcIssuer, name: str = "company", tenant: str = "acme") -> str:
        return ISSUER.format(name=name, url=issuer.url, tenant=tenant)

    async def becomes(issuer: OidcIssuer, expected: str) -> None:
        async def is_so() -> bool:
            return await gateway.by_token(issuer.token()) == expected

        await build.until(is_so, 10)

    with oidc_issuer() as first, oidc_issuer() as second:
        replace(gateway.identities, described(first))
        await becomes(first, "OK")
        replace(gateway.identities, described(first, tenant="brand-new") + described(second, "b"))
        await becomes(second, "OK")
        assert await gateway.by_token(first.token()) == "OK"
        await gateway.stack.new_key("brand-new", read=["*"])  # The tenant is there.
        # The name of one for another: only the other's keys count.
        replace(gateway.identities, described(second))
        await becomes(first, "UNAUTHENTICATED")
        assert await gateway.by_token(second.token()) == "OK"
        forged = OidcIssuer(second.url, dict(first.keys))
        assert await gateway.by_token(forged.token()) == "UNAUTHENTICATED"
        replace(gateway.identities, "")
        await becomes(second, "UNAUTHENTICATED")


async def test_a_broken_file_changes_nothing(
    gateway: Gateway, build: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority.new()
    certificate = authority.sign(WEB)
    replace(gateway.ca, authority.pem)
    replace(gateway.identities, CERTIFICATE)

    async def is_known() -> bool:
        return await gateway.by_certificate(certificate) == "OK"

    await build.until(is_known, 10)
    replace(gateway.identities, "[[certificates]]\nuri = 7")
    gateway.ca.unlink()

    async def is_logged() -> bool:
        return caplog.text.count("of before stays in use") == 2

    await build.until(is_logged, 10)
    assert await is_known()
    replace(gateway.ca, authority.pem)
    replace(gateway.identities, CERTIFICATE)


async def test_what_cannot_be_is_logged_once_and_looked_at_again_when_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "number"

    def read() -> int:
        try:
            return int(path.read_text())
        except ValueError:
            raise RuntimeError("it is no number") from None

    def write(text: str, at: int) -> None:
        path.write_text(text)
        os.utime(path, ns=(at, at))

    with pytest.raises(FileNotFoundError):
        Followed("the number", (path,), read)
    write("1", 1)
    followed = Followed("the number", (path,), read)
    assert not followed.reload()
    write("one", 2)
    assert not followed.reload()
    assert not followed.reload()
    assert [record.message for record in caplog.records] == [
        "the number of before stays in use: it is no number"
    ]
    assert followed.value == 1
    write("1", 3)
    assert not followed.reload()
    write("2", 4)
    assert followed.reload()
    assert followed.value == 2
