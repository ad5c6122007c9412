"""Get, List and ReadFile through a real channel, and who may call what."""

from __future__ import annotations  # The async stub exists only in the .pyi.

import base64
import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from servery.registry.v1 import registry_pb2 as pb
from tests.registry.conftest import (
    MODEL,
    MODELS,
    Client,
    Clock,
    bundle,
    claims,
    failure,
    messages,
)

ACME = "tenants/acme"


def ids(response: pb.ListModelsResponse) -> list[str]:
    return [model.name.rpartition("/")[2] for model in response.models]


async def test_a_model_shows_its_newest_version_and_aliases(many: Client, clock: Clock) -> None:
    for number, alias in ((4, "production"), (2, "canary")):
        await many.set_alias(number, alias=alias)
    model = (await many.stub.GetModel(pb.GetModelRequest(name=MODEL))).model
    assert (model.name, model.latest_version) == (MODEL, 4)
    assert model.create_time.ToDatetime(clock().tzinfo) == clock()
    assert [alias.name for alias in model.aliases] == [
        f"{MODEL}/aliases/canary",
        f"{MODEL}/aliases/production",
    ]
    listed = await many.stub.ListModels(pb.ListModelsRequest(parent=ACME))
    assert model in listed.models


async def test_models_come_in_pages_by_name(many: Client) -> None:
    token, pages = "", []
    while True:
        request = pb.ListModelsRequest(parent=ACME, page_size=2, page_token=token)
        response = await many.stub.ListModels(request)
        pages.append(ids(response))
        if not (token := response.next_page_token):
            break
    assert pages == [MODELS[:2], MODELS[2:4], MODELS[4:]]


async def test_a_full_last_page_has_no_token(many: Client) -> None:
    request = pb.ListModelsRequest(parent=ACME, page_size=len(MODELS))
    assert not (await many.stub.ListModels(request)).next_page_token


async def test_versions_come_in_pages_newest_first(many: Client) -> None:
    request = pb.ListVersionsRequest(parent=MODEL, page_size=3)
    first = await many.stub.ListVersions(request)
    request.page_token = first.next_page_token
    second = await many.stub.ListVersions(request)
    numbers = [version.name.rpartition("/")[2] for version in (*first.versions, *second.versions)]
    assert numbers == ["4", "3", "2", "1"]
    assert not second.next_page_token


async def test_models_that_the_caller_may_not_read_are_left_out(many: Client) -> None:
    metadata = claims(read=["digits*", "zebras"])
    request = pb.ListModelsRequest(parent=ACME, page_size=2)
    first = await many.stub.ListModels(request, metadata=metadata)
    request.page_token = first.next_page_token
    second = await many.stub.ListModels(request, metadata=metadata)
    assert ids(first) + ids(second) == ["digits", "digits-two", "zebras"]
    assert not second.next_page_token


def forged(listing: str, after: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps([listing, after]).encode()).decode()


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "not base64",
        forged(f"versions of {ACME}/models/bears", "1"),
        forged(f"models of {ACME}", "digits"),
        forged(f"versions of {MODEL}", "1 OR 1"),
        forged(f"versions of {MODEL}", "9" * 40),
        forged(f"versions of {MODEL}", "\ud800"),
        forged(f"versions of {MODEL}", 7),
    ],
)
async def test_a_page_token_of_another_listing_is_refused(many: Client, token: str) -> None:
    request = pb.ListVersionsRequest(parent=MODEL, page_token=token)
    error = await failure(many.stub.ListVersions(request))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.metadata["field"] == "page_token"


async def test_a_forged_page_token_of_models_is_refused(many: Client) -> None:
    request = pb.ListModelsRequest(parent=ACME, page_token=forged(f"models of {ACME}", "\ud800"))
    assert (await failure(many.stub.ListModels(request))).metadata["field"] == "page_token"


@pytest.mark.parametrize("size", [-1, 1001])
async def test_a_page_size_out_of_range_is_refused(many: Client, size: int) -> None:
    for call in (
        many.stub.ListModels(pb.ListModelsRequest(parent=ACME, page_size=size)),
        many.stub.ListVersions(pb.ListVersionsRequest(parent=MODEL, page_size=size)),
    ):
        assert (await failure(call)).metadata["field"] == "page_size"


async def read_nothing(client: Client, request: pb.ReadFileRequest) -> None:
    async for _ in client.stub.ReadFile(request):
        pass


CALLS: dict[str, Callable[[Client, str], Any]] = {
    "GetModel": lambda c, name: c.stub.GetModel(pb.GetModelRequest(name=name)),
    "ListModels": lambda c, name: c.stub.ListModels(pb.ListModelsRequest(parent=name)),
    "GetVersion": lambda c, name: c.stub.GetVersion(pb.GetVersionRequest(name=name)),
    "ListVersions": lambda c, name: c.stub.ListVersions(pb.ListVersionsRequest(parent=name)),
    "ReadFile": lambda c, name: read_nothing(c, pb.ReadFileRequest(name=name)),
    "GetAlias": lambda c, name: c.stub.GetAlias(pb.GetAliasRequest(name=name)),
    "DeleteAlias": lambda c, name: c.stub.DeleteAlias(pb.DeleteAliasRequest(name=name)),
    "WatchModels": lambda c, name: c.stub.WatchModels(pb.WatchModelsRequest(parent=name)).read(),
}


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("name", ["", "tenants/A", "tenants/acme/../x", "tenants/acme/models/a/"])
async def test_a_malformed_name_is_refused(client: Client, method: str, name: str) -> None:
    error = await failure(CALLS[method](client, name))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "ERROR_REASON_FIELD_INVALID"
    assert error.metadata["field"] in ("name", "parent")


@pytest.mark.parametrize(
    ("method", "name", "reason"),
    [
        ("GetModel", f"{ACME}/models/none", "MODEL_NOT_FOUND"),
        ("ListVersions", f"{ACME}/models/none", "MODEL_NOT_FOUND"),
        ("GetVersion", f"{MODEL}/versions/9", "VERSION_NOT_FOUND"),
        ("GetVersion", f"{MODEL}/versions/{'9' * 18}", "VERSION_NOT_FOUND"),
        ("ReadFile", f"{MODEL}/versions/9", "VERSION_NOT_FOUND"),
        ("GetAlias", f"{MODEL}/aliases/none", "ALIAS_NOT_FOUND"),
        ("DeleteAlias", f"{MODEL}/aliases/none", "ALIAS_NOT_FOUND"),
    ],
)
async def test_what_does_not_exist_is_named(
    many: Client, method: str, name: str, reason: str
) -> None:
    error = await failure(CALLS[method](many, name))
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert (error.reason, error.metadata) == (f"ERROR_REASON_{reason}", {"name": name})


async def test_a_read_continues_where_it_broke_off(client: Client) -> None:
    data = bytes(range(256)) * 10_000  # more than two chunks
    version = await client.register(bundle(big=data), chunk_bytes=2**20)
    for offset in (0, 1, 2**20, len(data) - 1, len(data)):
        assert await client.read(version.name, "big", offset) == data[offset:]
    request = pb.ReadFileRequest(name=version.name, path="big")
    sizes = [len(part.chunk) async for part in client.stub.ReadFile(request)]
    assert max(sizes) <= 2**20


@pytest.mark.parametrize("offset", [-1, 2])
async def test_an_offset_outside_the_file_is_refused(many: Client, offset: int) -> None:
    error = await failure(many.read(f"{MODEL}/versions/1", "model.onnx", offset))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.metadata["field"] == "offset_bytes"


@pytest.mark.parametrize("path", ["", "none.txt", "../registry.db", "/etc/passwd", "a" * 64])
async def test_a_path_that_is_no_file_of_the_version_is_not_found(many: Client, path: str) -> None:
    error = await failure(many.read(f"{MODEL}/versions/1", path))
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert error.reason == "ERROR_REASON_FILE_NOT_FOUND"
    assert error.metadata == {"name": f"{MODEL}/versions/1", "path": path}


def watched(client: Client, parent: str, metadata: Any) -> Any:
    return client.stub.WatchModels(pb.WatchModelsRequest(parent=parent), metadata=metadata).read()


GUARDED: dict[str, Callable[[Client, Any], Any]] = {
    "read GetModel": lambda c, m: c.stub.GetModel(pb.GetModelRequest(name=MODEL), metadata=m),
    "read GetVersion": lambda c, m: c.stub.GetVersion(
        pb.GetVersionRequest(name=f"{MODEL}/versions/1"), metadata=m
    ),
    "read ListVersions": lambda c, m: c.stub.ListVersions(
        pb.ListVersionsRequest(parent=MODEL), metadata=m
    ),
    "read ReadFile": lambda c, m: c.stub.ReadFile(
        pb.ReadFileRequest(name=f"{MODEL}/versions/1", path="model.onnx"), metadata=m
    ).read(),
    "read GetAlias": lambda c, m: c.stub.GetAlias(
        pb.GetAliasRequest(name=f"{MODEL}/aliases/production"), metadata=m
    ),
    "publish RegisterVersion": lambda c, m: c.register(metadata=m),
    "promote SetAlias": lambda c, m: c.stub.SetAlias(
        pb.SetAliasRequest(
            alias=pb.Alias(name=f"{MODEL}/aliases/production", version=f"{MODEL}/versions/1")
        ),
        metadata=m,
    ),
    "promote DeleteAlias": lambda c, m: c.stub.DeleteAlias(
        pb.DeleteAliasRequest(name=f"{MODEL}/aliases/production"), metadata=m
    ),
}


@pytest.mark.parametrize("call", GUARDED)
async def test_every_call_needs_its_permission_on_the_model(many: Client, call: str) -> None:
    verb = call.split()[0]
    everything = {v: ["*"] for v in ("infer", "read", "train", "publish", "promote", "admin")}
    for metadata in (
        claims(**{**everything, verb: []}),
        claims(**{**everything, verb: ["cats"]}),
        claims("other", **everything),
    ):
        error = await failure(GUARDED[call](many, metadata))
        assert error.code is grpc.StatusCode.PERMISSION_DENIED
        assert error.reason == "ERROR_REASON_PERMISSION_DENIED"
        assert error.metadata == {"verb": verb, "resource": MODEL}


@pytest.mark.parametrize("parent", [ACME, "tenants/-"])
async def test_another_tenant_is_neither_listed_nor_watched(many: Client, parent: str) -> None:
    metadata = claims("other", read=["*"])
    assert (await failure(watched(many, parent, metadata))).code is (
        grpc.StatusCode.PERMISSION_DENIED
    )
    if parent == ACME:
        call = many.stub.ListModels(pb.ListModelsRequest(parent=parent), metadata=metadata)
        assert (await failure(call)).code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_key_that_may_publish_does(client: Client) -> None:
    version = await client.register(metadata=claims(publish=["dig*"]))
    assert version.name == f"{MODEL}/versions/1"


async def test_permission_is_asked_before_the_files_are_looked_at(client: Client) -> None:
    call = client.stub.RegisterVersion(messages({}), metadata=claims(read=["*"]))
    assert (await failure(call)).code is grpc.StatusCode.PERMISSION_DENIED
