"""SetAlias and DeleteAlias through a real channel: compare-and-set."""

from __future__ import annotations  # The async stub exists only in the .pyi.

import asyncio
from typing import Any

import grpc
import pytest

from servery.errors import ApiError
from servery.registry.v1 import registry_pb2 as pb
from tests.registry.conftest import MODEL, Client, failure

PRODUCTION = f"{MODEL}/aliases/production"


async def current(client: Client) -> pb.Alias:
    return (await client.stub.GetAlias(pb.GetAliasRequest(name=PRODUCTION))).alias


def delete(client: Client, etag: str) -> Any:
    return client.stub.DeleteAlias(pb.DeleteAliasRequest(name=PRODUCTION, etag=etag))


def assert_mismatch(error: ApiError, etag: str) -> None:
    assert error.code is grpc.StatusCode.ABORTED
    assert error.reason == "ERROR_REASON_ETAG_MISMATCH"
    assert error.metadata == {"name": PRODUCTION, "etag": etag}


async def test_promotion_and_rollback(many: Client) -> None:
    created = await many.set_alias(1)
    assert created.version == f"{MODEL}/versions/1"
    promoted = await many.set_alias(2, created.etag)
    back = await many.set_alias(1, promoted.etag)
    assert await current(many) == back
    assert len({created.etag, promoted.etag, back.etag}) == 3


async def test_an_old_etag_moves_nothing(many: Client) -> None:
    first = await many.set_alias(1)
    second = await many.set_alias(2, first.etag)
    assert_mismatch(await failure(many.set_alias(3, first.etag)), second.etag)
    assert await current(many) == second


async def test_an_alias_that_exists_is_not_created_again(many: Client) -> None:
    first = await many.set_alias(1)
    assert_mismatch(await failure(many.set_alias(2)), first.etag)


async def test_an_alias_that_is_gone_does_not_move(many: Client) -> None:
    first = await many.set_alias(1)
    await delete(many, first.etag)
    assert_mismatch(await failure(many.set_alias(2, first.etag)), "")


async def test_a_new_alias_of_an_old_name_has_a_new_etag(many: Client) -> None:
    first = await many.set_alias(1)
    await delete(many, first.etag)
    assert (await many.set_alias(1)).etag != first.etag


async def test_moving_an_alias_to_where_it_is_changes_nothing(many: Client) -> None:
    first = await many.set_alias(1)
    assert await many.set_alias(1, "stale") == first
    assert await current(many) == first


async def test_of_many_moves_at_once_one_wins(many: Client) -> None:
    first = await many.set_alias(4)
    moves = [many.set_alias(number, first.etag) for number in (1, 2, 3) * 3]
    ended = await asyncio.gather(*moves, return_exceptions=True)
    winners = {move.version for move in ended if isinstance(move, pb.Alias)}
    assert winners == {(await current(many)).version}
    losers = [error for error in ended if isinstance(error, grpc.aio.AioRpcError)]
    assert {error.code() for error in losers} == {grpc.StatusCode.ABORTED}


async def test_a_deleted_alias_is_gone_and_its_version_stays(many: Client) -> None:
    alias = await many.set_alias(1)
    await delete(many, alias.etag)
    assert (await failure(current(many))).reason == "ERROR_REASON_ALIAS_NOT_FOUND"
    assert f"{MODEL}/versions/1" in await many.versions()


@pytest.mark.parametrize("etag", ["", '"0"', "x"])
async def test_an_alias_is_deleted_only_with_its_etag(many: Client, etag: str) -> None:
    alias = await many.set_alias(1)
    assert_mismatch(await failure(delete(many, etag)), alias.etag)


@pytest.mark.parametrize(
    ("alias", "field"),
    [
        (pb.Alias(name="x", version=f"{MODEL}/versions/1"), "alias.name"),
        (pb.Alias(name=PRODUCTION, version="1"), "alias.version"),
        (pb.Alias(name=PRODUCTION, version=f"{MODEL}/versions/01"), "alias.version"),
        (
            pb.Alias(name=PRODUCTION, version="tenants/acme/models/bears/versions/1"),
            "alias.version",
        ),
        (
            pb.Alias(name=PRODUCTION, version="tenants/other/models/digits/versions/1"),
            "alias.version",
        ),
    ],
)
async def test_a_malformed_alias_is_refused(many: Client, alias: pb.Alias, field: str) -> None:
    error = await failure(many.stub.SetAlias(pb.SetAliasRequest(alias=alias)))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.metadata["field"] == field


async def test_an_alias_points_only_at_a_version_that_exists(many: Client) -> None:
    error = await failure(many.set_alias(5))
    assert error.reason == "ERROR_REASON_VERSION_NOT_FOUND"
    assert error.metadata == {"name": f"{MODEL}/versions/5"}
