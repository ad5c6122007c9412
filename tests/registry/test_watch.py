"""WatchModels through a real channel: a snapshot, then every change, in one order for all."""

from __future__ import annotations  # The async stub exists only in the .pyi.

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from servery.registry.v1 import registry_pb2 as pb
from tests.registry.conftest import MODEL, MODELS, Client, Clock, claims, failure, opened

ACME = "tenants/acme"


def watch(client: Client, parent: str = ACME, token: str = "", metadata: Any = None) -> Any:
    request = pb.WatchModelsRequest(parent=parent, resume_token=token)
    return client.stub.WatchModels(request, metadata=metadata)


async def snapshot(call: Any) -> list[pb.WatchModelsResponse]:
    """Read up to `snapshot_complete`, which comes last."""
    seen = [await call.read()]
    while not seen[-1].snapshot_complete:
        seen.append(await call.read())
    return seen


async def read(call: Any, count: int) -> list[pb.WatchModelsResponse]:
    async with asyncio.timeout(5):
        return [await call.read() for _ in range(count)]


def told(response: pb.WatchModelsResponse) -> str:
    """What one response says, in short."""
    match response.WhichOneof("event"):
        case "version":
            return response.version.name.removeprefix("tenants/")
        case "alias":
            number = response.alias.version.rpartition("/")[2]
            return f"{response.alias.name.removeprefix('tenants/')}={number}"
        case "deleted_alias":
            return f"-{response.deleted_alias.removeprefix('tenants/')}"
        case event:
            return str(event)


async def delete(client: Client, alias: pb.Alias) -> None:
    await client.stub.DeleteAlias(pb.DeleteAliasRequest(name=alias.name, etag=alias.etag))


async def test_an_empty_registry_is_complete_at_once(client: Client) -> None:
    (only,) = await snapshot(watch(client))
    assert only.resume_token


async def test_the_snapshot_has_each_version_and_alias(many: Client) -> None:
    alias = await many.set_alias(3)
    seen = await snapshot(watch(many))
    names = [r.version.name for r in seen if r.WhichOneof("event") == "version"]
    assert sorted(names) == sorted(
        [f"{ACME}/models/{m}/versions/1" for m in MODELS]
        + [f"{MODEL}/versions/{n}" for n in (2, 3, 4)]
    )
    assert seen[-2].alias == alias
    assert [r.resume_token for r in seen[:-1]] == [""] * (len(seen) - 1)


async def test_changes_follow_as_they_happen(client: Client) -> None:
    call = watch(client)
    await snapshot(call)
    version = await client.register()
    alias = await client.set_alias(1)
    await delete(client, alias)
    seen = await read(call, 3)
    assert seen[0].version == version
    assert seen[1].alias == alias
    assert seen[2].deleted_alias == alias.name
    assert len({r.resume_token for r in seen}) == 3


async def test_a_watch_continues_after_each_of_its_responses(many: Client) -> None:
    call = watch(many)
    seen = [(await snapshot(call))[-1]]
    alias = await many.set_alias(1)
    for number in (2, 3, 4):
        alias = await many.set_alias(number, alias.etag)
    await delete(many, alias)
    seen += await read(call, 5)
    for index, response in enumerate(seen[:-1]):
        rest = await read(watch(many, token=response.resume_token), len(seen) - 1 - index)
        assert rest == seen[index + 1 :]


async def test_all_watchers_see_one_order(many: Client) -> None:
    calls = [watch(many) for _ in range(4)]
    for call in calls:
        await snapshot(call)
    await asyncio.gather(*(many.set_alias(1, alias=f"a{n}") for n in range(20)))
    orders = [[told(r) for r in await read(call, 20)] for call in calls]
    assert orders[0] == orders[1] == orders[2] == orders[3]
    assert len(set(orders[0])) == 20


async def test_a_change_during_the_snapshot_is_not_lost(many: Client) -> None:
    """Wherever the change falls, snapshot and changes together end at the present state."""
    for number in range(10):
        alias = f"a{number}"
        call = watch(many)
        await many.set_alias(1, alias=alias)
        seen = await snapshot(call)
        wanted = f"acme/models/digits/aliases/{alias}=1"
        if wanted not in map(told, seen):
            assert [told(r) for r in await read(call, 1)] == [wanted]
        call.cancel()


async def test_a_tenant_is_told_of_what_it_may_read_only(many: Client) -> None:
    call = watch(many, metadata=claims(read=["bears"]))
    assert list(map(told, await snapshot(call))) == [
        "acme/models/bears/versions/1",
        "snapshot_complete",
    ]
    await many.set_alias(1)
    await many.set_alias(1, model="tenants/other/models/bears")
    await many.set_alias(1, model=f"{ACME}/models/bears")
    assert list(map(told, await read(call, 1))) == ["acme/models/bears/aliases/production=1"]


async def test_a_process_of_the_platform_watches_all_tenants(many: Client) -> None:
    call = watch(many, "tenants/-")
    assert len(await snapshot(call)) == 2 * (len(MODELS) + 3) + 1
    await many.set_alias(1, model="tenants/other/models/bears")
    await many.set_alias(1)
    assert list(map(told, await read(call, 2))) == [
        "other/models/bears/aliases/production=1",
        "acme/models/digits/aliases/production=1",
    ]


async def test_a_watch_continues_over_a_restart(tmp_path: Path, clock: Clock) -> None:
    async with opened(tmp_path / "data", clock) as client:
        await client.register()
        token = (await snapshot(watch(client)))[-1].resume_token
        alias = await client.set_alias(1)
    async with opened(tmp_path / "data", clock) as client:
        (seen,) = await read(watch(client, token=token), 1)
        assert seen.alias == alias


def forged(*fields: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode()


@pytest.mark.parametrize("token", ["x", "%%%", forged(), forged("x", "acme", 0), forged(1, 2, 3)])
async def test_a_malformed_token_is_refused(client: Client, token: str) -> None:
    error = await failure(watch(client, token=token).read())
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.metadata["field"] == "resume_token"


async def test_a_token_is_for_its_own_parent_and_registry_only(
    many: Client, tmp_path: Path, clock: Clock
) -> None:
    token = (await snapshot(watch(many)))[-1].resume_token
    log_id, tenant, position = json.loads(base64.urlsafe_b64decode(token))
    for call in (
        watch(many, "tenants/-", token),
        watch(many, "tenants/other", token),
        watch(many, token=forged(log_id, tenant, position + 1)),
        watch(many, token=forged(log_id, tenant, -1)),
        watch(many, token=forged(log_id, tenant, True)),
    ):
        assert (await failure(call.read())).metadata["field"] == "resume_token"
    async with opened(tmp_path / "b" / "data", clock) as another:
        assert (await failure(watch(another, token=token).read())).metadata["field"] == (
            "resume_token"
        )


async def test_a_stopping_server_tells_its_watchers_to_come_back(client: Client) -> None:
    call = watch(client)
    await snapshot(call)
    client.registry.watch.close()
    error = await failure(call.read())
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert error.reason == "ERROR_REASON_DEPENDENCY_UNAVAILABLE"
