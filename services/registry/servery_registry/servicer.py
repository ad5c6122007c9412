"""RegistryService on the wire: parse, ask whether the caller may, call, render."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Any, Final

import grpc

from servery.registry.v1 import registry_pb2 as pb
from servery.registry.v1 import registry_pb2_grpc as pb_grpc
from servery_registry.artifacts import CHUNK_BYTES, Blobs
from servery_registry.publisher import Publisher
from servery_registry.store import Store
from servery_registry.version import Model
from servery_registry.watch import Watch
from servery_registry.wire import (
    parse_header,
    render_alias,
    render_model,
    render_notice,
    render_version,
)
from servery_rpc.errors import FieldInvalidError, PermissionDeniedError
from servery_rpc.identity import Caller, caller_of
from servery_rpc.names import MODEL, AliasName, ModelName, TenantName, VersionName
from servery_rpc.pages import Page, page_token, parse_page

_EVERY_TENANT: Final = "tenants/-"
_NUMBER: Final = r"[1-9][0-9]{0,17}"

Context = grpc.aio.ServicerContext[Any, Any]


class RegistryServicer(pb_grpc.RegistryServiceServicer):
    """Serves one store and its blobs."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        publisher: Publisher,
        watch: Watch,
        max_bundle_bytes: int,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._publisher = publisher
        self._watch = watch
        self._max_bundle_bytes = max_bundle_bytes

    async def RegisterVersion(
        self, request_iterator: AsyncIterator[pb.RegisterVersionRequest], context: Context
    ) -> pb.RegisterVersionResponse:
        """See registry.proto."""
        first = await anext(request_iterator, pb.RegisterVersionRequest())
        if first.WhichOneof("part") != "header":
            raise FieldInvalidError("part", first.WhichOneof("part"), "be the header at first")
        model = ModelName.parse(first.header.parent, "header.parent")
        caller_of(context).require("publish", model.tenant, model.model)
        upload = parse_header(model, first.header, self._max_bundle_bytes)
        version = await self._publisher.publish(upload, _chunks(request_iterator))
        return pb.RegisterVersionResponse(version=render_version(version))

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """See registry.proto."""
        name = ModelName.parse(request.name)
        caller_of(context).require("read", name.tenant, name.model)
        model = await asyncio.to_thread(self._store.model, name)
        return pb.GetModelResponse(model=render_model(model))

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        """See registry.proto."""
        tenant = TenantName.parse(request.parent, "parent").tenant
        caller = caller_of(context)
        caller.require("read", tenant)
        listing = f"models of {request.parent}"
        page = parse_page(request.page_size, request.page_token, listing)
        after = _key(page, MODEL, request.page_token) or ""
        found = await asyncio.to_thread(self._readable, caller, tenant, after, page.size + 1)
        more = len(found) > page.size
        return pb.ListModelsResponse(
            models=[render_model(model) for model in found[: page.size]],
            next_page_token=page_token(listing, found[page.size - 1].name.model) if more else "",
        )

    async def GetVersion(
        self, request: pb.GetVersionRequest, context: Context
    ) -> pb.GetVersionResponse:
        """See registry.proto."""
        name = VersionName.parse(request.name)
        caller_of(context).require("read", name.model.tenant, name.model.model)
        version = await asyncio.to_thread(self._store.version, name)
        return pb.GetVersionResponse(version=render_version(version))

    async def ListVersions(
        self, request: pb.ListVersionsRequest, context: Context
    ) -> pb.ListVersionsResponse:
        """See registry.proto."""
        model = ModelName.parse(request.parent, "parent")
        caller_of(context).require("read", model.tenant, model.model)
        listing = f"versions of {model}"
        page = parse_page(request.page_size, request.page_token, listing)
        before = _key(page, _NUMBER, request.page_token)
        found = await asyncio.to_thread(
            self._store.versions, model, int(before) if before else None, page.size + 1
        )
        more = len(found) > page.size
        return pb.ListVersionsResponse(
            versions=[render_version(version) for version in found[: page.size]],
            next_page_token=(
                page_token(listing, str(found[page.size - 1].name.number)) if more else ""
            ),
        )

    async def ReadFile(
        self, request: pb.ReadFileRequest, context: Context
    ) -> AsyncIterator[pb.ReadFileResponse]:
        """See registry.proto."""
        name = VersionName.parse(request.name)
        caller_of(context).require("read", name.model.tenant, name.model.model)
        version = await asyncio.to_thread(self._store.version, name)
        file = version.file(request.path)
        if not 0 <= request.offset_bytes <= file.size_bytes:
            raise FieldInvalidError(
                "offset_bytes", request.offset_bytes, f"be 0 to {file.size_bytes}"
            )
        if request.offset_bytes < file.size_bytes:
            async for chunk in self._blobs.read(file.sha256, request.offset_bytes):
                yield pb.ReadFileResponse(chunk=chunk)

    async def GetAlias(self, request: pb.GetAliasRequest, context: Context) -> pb.GetAliasResponse:
        """See registry.proto."""
        name = AliasName.parse(request.name)
        caller_of(context).require("read", name.model.tenant, name.model.model)
        alias = await asyncio.to_thread(self._store.alias, name)
        return pb.GetAliasResponse(alias=render_alias(alias))

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        """See registry.proto."""
        name = AliasName.parse(request.alias.name, "alias.name")
        caller_of(context).require("promote", name.model.tenant, name.model.model)
        version = VersionName.parse(request.alias.version, "alias.version")
        if version.model != name.model:
            raise FieldInvalidError("alias.version", version, f"be a version of {name.model}")
        alias = await asyncio.to_thread(
            self._store.set_alias, name, version.number, request.alias.etag
        )
        return pb.SetAliasResponse(alias=render_alias(alias))

    async def DeleteAlias(
        self, request: pb.DeleteAliasRequest, context: Context
    ) -> pb.DeleteAliasResponse:
        """See registry.proto."""
        name = AliasName.parse(request.name)
        caller_of(context).require("promote", name.model.tenant, name.model.model)
        await asyncio.to_thread(self._store.delete_alias, name, request.etag)
        return pb.DeleteAliasResponse()

    async def WatchModels(
        self, request: pb.WatchModelsRequest, context: Context
    ) -> AsyncIterator[pb.WatchModelsResponse]:
        """See registry.proto."""
        caller = caller_of(context)
        if request.parent == _EVERY_TENANT:
            tenant = None
            if caller.tenant is not None:
                raise PermissionDeniedError("read", _EVERY_TENANT)
        else:
            tenant = TenantName.parse(request.parent, "parent").tenant
            caller.require("read", tenant)
        async for notice in self._watch.notices(
            tenant, request.resume_token, lambda m: caller.may("read", m.tenant, m.model)
        ):
            yield render_notice(notice)

    def _readable(self, caller: Caller, tenant: str, after: str, limit: int) -> list[Model]:
        """Return the first `limit` models behind `after` that the caller may read. Blocks."""

        def models(after: str) -> Iterator[Model]:
            while batch := self._store.models(tenant, after, limit):
                yield from batch
                after = batch[-1].name.model

        readable = (m for m in models(after) if caller.may("read", tenant, m.name.model))
        return list(islice(readable, limit))


async def _chunks(requests: AsyncIterator[pb.RegisterVersionRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise FieldInvalidError(
                "part", request.WhichOneof("part"), "be a chunk after the header"
            )
        chunk = request.chunk  # Each access copies the bytes.
        if len(chunk) > CHUNK_BYTES:
            raise FieldInvalidError(
                "chunk", f"{len(chunk)} bytes", f"hold at most {CHUNK_BYTES} bytes"
            )
        yield chunk


def _key(page: Page, pattern: str, token: str) -> str | None:
    """The key in a page token, which any caller could have made up."""
    if page.after is not None and not re.fullmatch(pattern, page.after):
        raise FieldInvalidError("page_token", token, "be the next_page_token of an earlier call")
    return page.after
