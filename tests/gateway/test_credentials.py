"""New signing keys and certificates come into use without a refused call."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import jwt
import pytest

from servery.gateway.v1 import gateway_pb2 as pb
from servery.gateway.v1 import gateway_pb2_grpc as pb_grpc
from servery_gateway.control_plane import control_plane
from servery_gateway.signing_keys import PUBLISHED_AHEAD, Plan, plan
from tests.gateway.certificates import write_certificate

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder, Stack

READY = "/inference.GRPCInferenceService/ServerReady"
MONTH = timedelta(days=30)
START = datetime(2026, 1, 1, tzinfo=UTC)
SECOND_KEY = START + MONTH


@pytest.mark.parametrize(
    ("made", "after", "expected"),
    [
        pytest.param([START], MONTH / 2, Plan(False, START, ()), id="nothing to do"),
        pytest.param([START], MONTH, Plan(True, START, ()), id="time for the next"),
        pytest.param([START, SECOND_KEY], MONTH, Plan(False, START, ()), id="publish first"),
        pytest.param(
            [START, SECOND_KEY], MONTH + PUBLISHED_AHEAD, Plan(False, SECOND_KEY, ()), id="sign"
        ),
        pytest.param(
            [START, SECOND_KEY],
            MONTH + PUBLISHED_AHEAD + timedelta(minutes=10),
            Plan(False, SECOND_KEY, ()),
            id="tokens of the first may live",
        ),
        pytest.param(
            [START, SECOND_KEY],
            MONTH + PUBLISHED_AHEAD + timedelta(minutes=11),
            Plan(False, SECOND_KEY, (START,)),
            id="none can live",
        ),
    ],
)
def test_a_key_is_published_then_signs_then_waits_for_its_last_token(
    made: list[datetime], after: timedelta, expected: Plan
) -> None:
    assert plan(made, START + after, MONTH) == expected


@pytest.mark.asyncio(loop_scope="session")
async def test_no_valid_token_is_refused_while_keys_change(
    build: Builder, own_directory: Path
) -> None:
    settings = build.settings_for(own_directory, signing_key_days=1)
    ahead = timedelta()

    def now() -> datetime:
        return datetime.now(UTC) + ahead

    def num_keys() -> int:
        return len(list(settings.data_dir.glob("signing-key-*.pem")))

    async with control_plane(settings, now), build.running_stack(settings, own_directory) as own:
        secret = (await own.new_key(infer=["*"])).secret
        traffic = asyncio.create_task(keep_calling(own))
        old = await own.exchange(secret)
        ahead = timedelta(days=1)
        await build.until(lambda: asyncio.sleep(0, num_keys() == 2))
        ahead = timedelta()  # Tokens bear the real time, as Envoy's clock does.
        assert signer(await own.exchange(secret)) == signer(old)
        assert not traffic.done()
        traffic.cancel()
    for age, path in enumerate(sorted(settings.data_dir.glob("signing-key-*.pem")), start=1):
        path.rename(path.with_name(f"signing-key-{age}.pem"))
    async with control_plane(settings, now), build.running_stack(settings, own_directory) as own:
        new = await own.exchange(secret)
        assert signer(new) != signer(old)
        await own.call(READY, new)


@pytest.mark.asyncio(loop_scope="session")
async def test_a_token_that_was_used_ends_with_its_key(build: Builder, own_directory: Path) -> None:
    settings = build.settings_for(own_directory)
    async with AsyncExitStack() as first:
        await first.enter_async_context(control_plane(settings))
        async with build.running_stack(settings, own_directory) as own:
            token = await own.token(infer=["*"])
            for _ in range(20):  # Every worker of Envoy has seen it.
                await own.call(READY, token)
            await first.aclose()
            for path in settings.data_dir.glob("signing-key-*.pem"):
                path.unlink()
            async with control_plane(settings):

                async def is_refused() -> bool:
                    try:
                        await own.call(READY, token)
                    except grpc.aio.AioRpcError as error:
                        return error.code() is grpc.StatusCode.UNAUTHENTICATED
                    return False

                await build.until(is_refused, 10)
                for _ in range(20):
                    await own.refusal(READY, token)


async def keep_calling(stack: Stack) -> None:
    token = await stack.token(infer=["*"])
    while True:
        await stack.call(READY, token)


def signer(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


@pytest.mark.asyncio(loop_scope="session")
async def test_a_new_certificate_is_shown_and_open_connections_stay(
    build: Builder, own_directory: Path
) -> None:
    chain, key = own_directory / "tls.crt", own_directory / "tls.key"
    write_certificate(chain, key)
    settings = build.settings_for(own_directory, public_tls_certificate=chain, public_tls_key=key)
    trust = grpc.ssl_channel_credentials(chain.read_bytes())
    before = ssl.PEM_cert_to_DER_cert(chain.read_text())
    async with (
        control_plane(settings),
        build.running_stack(settings, own_directory, trust) as own,
    ):
        assert await shown(settings.public_address.port) == before
        traffic = asyncio.create_task(keep_calling(own))
        key.write_text("half")  # Files change one after the other.
        write_certificate(chain, key)
        after = ssl.PEM_cert_to_DER_cert(chain.read_text())

        async def is_shown() -> bool:
            return await shown(settings.public_address.port) == after

        await build.until(is_shown)
        assert not traffic.done()
        traffic.cancel()


async def shown(port: int) -> bytes:
    """Return the certificate that new connections see."""
    return ssl.PEM_cert_to_DER_cert(
        await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port), timeout=5)
    )


@pytest.mark.asyncio(loop_scope="session")
async def test_a_key_tells_when_it_was_last_used(stack: Stack, build: Builder) -> None:
    key = await stack.new_key("user", infer=["*"])
    stub = pb_grpc.ApiKeyServiceStub(stack.platform)

    async def last_use() -> bool:
        listed = await stub.ListApiKeys(pb.ListApiKeysRequest(parent="tenants/user"))
        return listed.api_keys[0].HasField("last_use_time")

    assert not await last_use()
    await stack.call(READY, await stack.exchange(key.secret))
    await build.until(last_use)
