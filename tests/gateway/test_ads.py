"""The xDS server as an Envoy sees it, over a real stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from servery_gateway import xds_pool
from servery_gateway.ads import SERVICE, AdsServer
from servery_gateway.limits import deny
from servery_gateway.snapshot import CLUSTER, EXTENSION, ConfigurationRejectedError, Snapshot
from servery_rpc.errors import DependencyUnavailableError
from servery_rpc.server import serving
from servery_rpc.settings import ServerSettings

NAMES = ("revoked-keys",)


def snapshot(*denied: str) -> Snapshot:
    return Snapshot({EXTENSION: {"revoked-keys": deny({"revoked": denied}), "other": deny({})}})


class Subscriber:
    """The client's side of the protocol."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._request = xds_pool.message_class("envoy.service.discovery.v3.DiscoveryRequest")

    async def ask(self, kind: str, *names: str, nonce: str = "", refuse: str = "") -> None:
        request: Any = self._request()
        request.type_url, request.response_nonce = kind, nonce
        request.resource_names.extend(names)
        if refuse:
            request.error_detail.message = refuse
        await self._call.write(request)

    async def next(self) -> Any:
        response = await asyncio.wait_for(self._call.read(), 5)
        assert response is not grpc.aio.EOF
        return response

    async def accept(self, response: Any, *names: str) -> None:
        await self.ask(response.type_url, *names, nonce=response.nonce)

    async def is_silent(self) -> bool:
        """Whether nothing comes before the answer to a question asked now."""
        await self.ask(CLUSTER)
        return bool((await self.next()).type_url == CLUSTER)

    def hang_up(self) -> None:
        self._call.cancel()


@pytest.fixture
def ads() -> AdsServer:
    return AdsServer(retry_s=0.2)


@pytest.fixture
async def subscriber(ads: AdsServer, tmp_path: Path) -> AsyncIterator[Subscriber]:
    settings = ServerSettings(listen=f"unix:{tmp_path}/ads.sock", drain_s=0)
    response = xds_pool.message_class("envoy.service.discovery.v3.DiscoveryResponse")
    async with (
        serving(settings, ads.service, pools=[xds_pool.pool()]) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        method: Any = channel.stream_stream(
            f"/{SERVICE}/StreamAggregatedResources",
            lambda request: request.SerializeToString(),
            response.FromString,
        )
        yield Subscriber(method())


async def test_an_envoy_gets_the_resources_it_names(ads: AdsServer, subscriber: Subscriber) -> None:
    await ads.publish(snapshot("tenants/a/apiKeys/1"))
    await subscriber.ask(EXTENSION, "revoked-keys", "missing")
    response = await subscriber.next()
    assert response.version_info == snapshot("tenants/a/apiKeys/1").versions[EXTENSION]
    assert len(response.resources) == 1


async def test_an_envoy_that_comes_first_waits_for_the_snapshot(
    ads: AdsServer, subscriber: Subscriber
) -> None:
    await subscriber.ask(EXTENSION, *NAMES)
    publishing = asyncio.create_task(ads.publish(snapshot()))
    await subscriber.accept(await subscriber.next(), *NAMES)
    await asyncio.wait_for(publishing, 5)


async def test_names_added_while_an_answer_is_under_way_are_answered(
    ads: AdsServer, subscriber: Subscriber
) -> None:
    await ads.publish(snapshot())
    await subscriber.ask(EXTENSION, *NAMES)
    response = await subscriber.next()
    await subscriber.accept(response, *NAMES, "other")
    assert len((await subscriber.next()).resources) == 2


async def test_what_was_accepted_is_sent_again_only_when_asked_for_again(
    ads: AdsServer, subscriber: Subscriber
) -> None:
    """Envoy asks again with the last nonce when a changed cluster needs its endpoints."""
    await ads.publish(snapshot())
    await subscriber.ask(EXTENSION, *NAMES)
    response = await subscriber.next()
    await subscriber.accept(response, *NAMES)
    assert await subscriber.is_silent()
    await subscriber.accept(response, *NAMES)
    again = await subscriber.next()
    assert again.version_info == response.version_info
    assert again.nonce != response.nonce


async def test_a_stale_answer_is_no_answer(ads: AdsServer, subscriber: Subscriber) -> None:
    await ads.publish(snapshot())
    await subscriber.ask(EXTENSION, *NAMES)
    first = await subscriber.next()
    publishing = asyncio.create_task(ads.publish(snapshot("tenants/a/apiKeys/1")))
    second = await subscriber.next()
    await subscriber.ask(EXTENSION, *NAMES, nonce=first.nonce, refuse="too late")
    assert await subscriber.is_silent()
    assert not publishing.done()
    await subscriber.accept(second, *NAMES)
    # The question of `is_silent` waits for its answer, too.
    await subscriber.ask(CLUSTER, nonce=str(int(second.nonce) + 1))
    await asyncio.wait_for(publishing, 5)


async def test_publishing_what_is_in_force_sends_nothing(
    ads: AdsServer, subscriber: Subscriber
) -> None:
    await ads.publish(snapshot())
    await subscriber.ask(EXTENSION, *NAMES)
    await subscriber.accept(await subscriber.next(), *NAMES)
    await ads.publish(snapshot())
    assert await subscriber.is_silent()


async def test_a_refused_snapshot_is_withdrawn_and_its_problem_told(
    ads: AdsServer, subscriber: Subscriber
) -> None:
    good = snapshot()
    await ads.publish(good)
    await subscriber.ask(EXTENSION, *NAMES)
    await subscriber.accept(await subscriber.next(), *NAMES)
    publishing = asyncio.create_task(ads.publish(snapshot("tenants/a/apiKeys/1")))
    bad = await subscriber.next()
    await subscriber.ask(EXTENSION, *NAMES, nonce=bad.nonce, refuse="no such filter")
    with pytest.raises(ConfigurationRejectedError) as caught:
        await asyncio.wait_for(publishing, 5)
    assert caught.value.metadata == {"problem": "no such filter"}
    restored = await subscriber.next()
    assert restored.version_info == good.versions[EXTENSION]
    await subscriber.accept(restored, *NAMES)
    await ads.publish(good)


async def test_what_was_refused_and_is_in_force_is_offered_again(
    ads: AdsServer, subscriber: Subscriber
) -> None:
    """Envoy refuses a listener whose port is in use, and has no way to say that it is free."""
    await ads.publish(snapshot())
    await subscriber.ask(EXTENSION, *NAMES)
    first = await subscriber.next()
    await subscriber.ask(EXTENSION, *NAMES, nonce=first.nonce, refuse="port in use")
    again = await subscriber.next()
    assert again.version_info == first.version_info
    await subscriber.accept(again, *NAMES)
    assert await subscriber.is_silent()


async def test_with_no_envoy_publishing_returns_at_once(ads: AdsServer) -> None:
    await asyncio.wait_for(ads.publish(snapshot(), timeout_s=60), 5)


async def test_an_envoy_that_says_nothing_is_not_waited_for_for_ever(
    ads: AdsServer, subscriber: Subscriber
) -> None:
    await ads.publish(snapshot())
    await subscriber.ask(EXTENSION, *NAMES)
    await subscriber.next()
    with pytest.raises(DependencyUnavailableError):
        await ads.publish(snapshot("tenants/a/apiKeys/1"), timeout_s=0.05)


async def test_an_envoy_that_hangs_up_is_not_waited_for(
    ads: AdsServer, subscriber: Subscriber
) -> None:
    await ads.publish(snapshot())
    await subscriber.ask(EXTENSION, *NAMES)
    await subscriber.next()
    publishing = asyncio.create_task(ads.publish(snapshot("tenants/a/apiKeys/1"), timeout_s=60))
    await subscriber.next()
    subscriber.hang_up()
    await asyncio.wait_for(publishing, 5)


async def test_a_closed_server_ends_its_streams(ads: AdsServer, subscriber: Subscriber) -> None:
    await ads.publish(snapshot())
    await subscriber.ask(EXTENSION, *NAMES)
    await subscriber.next()
    ads.close()
    assert await asyncio.wait_for(subscriber._call.read(), 5) is grpc.aio.EOF
