"""DatasetService on the wire: parse, call the store, render."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from servery.trainer.v1 import dataset_pb2 as pb
from servery.trainer.v1 import dataset_pb2_grpc as pb_grpc
from servery_rpc.errors import FieldInvalidError
from servery_rpc.identity import Caller, caller_of
from servery_rpc.names import DatasetName, TenantName, UploadName
from servery_rpc.pages import page_token, parse_page
from servery_trainer.dataset_store import DatasetStore
from servery_trainer.intake import Upload
from servery_trainer.uploads import Uploads
from servery_trainer.validation import Validation
from servery_trainer.validator import Validator


class DatasetServicer(pb_grpc.DatasetServiceServicer):
    """Serves one `DatasetStore` and the `Uploads` to it."""

    def __init__(self, store: DatasetStore, uploads: Uploads) -> None:
        self._store = store
        self._uploads = uploads
        self._validator = Validator(store)

    async def CreateDataset(
        self,
        request_iterator: AsyncIterator[pb.CreateDatasetRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> pb.CreateDatasetResponse:
        """See dataset.proto."""
        first = await anext(request_iterator, pb.CreateDatasetRequest())
        if not first.HasField("header"):
            raise FieldInvalidError("header", "", "be the first message")
        upload = Upload.parse(first.header)
        caller_of(context).require("train", upload.parent.tenant)
        dataset = await self._store.receive(upload, _chunks(request_iterator))
        return pb.CreateDatasetResponse(dataset=dataset)

    async def GetDataset(
        self, request: pb.GetDatasetRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetDatasetResponse:
        """See dataset.proto."""
        name = DatasetName.parse(request.name)
        require_sight(caller_of(context), name.tenant)
        return pb.GetDatasetResponse(dataset=await asyncio.to_thread(self._store.get, name))

    async def ListDatasets(
        self, request: pb.ListDatasetsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListDatasetsResponse:
        """See dataset.proto."""
        parent = TenantName.parse(request.parent, "parent")
        require_sight(caller_of(context), parent.tenant)
        listing = f"{parent}/datasets"
        page = parse_page(request.page_size, request.page_token, listing)
        datasets, after = await asyncio.to_thread(self._store.list, parent.tenant, page)
        token = page_token(listing, after) if after else ""
        return pb.ListDatasetsResponse(datasets=datasets, next_page_token=token)

    async def ValidateDataset(
        self, request: pb.ValidateDatasetRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ValidateDatasetResponse:
        """See dataset.proto."""
        asked = Validation.parse(request)
        require_sight(caller_of(context), asked.name.tenant)
        return await self._validator.report(asked)

    async def CreateUpload(
        self, request: pb.CreateUploadRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.CreateUploadResponse:
        """See dataset.proto."""
        upload = Upload.parse(request.header)
        caller_of(context).require("train", upload.parent.tenant)
        begun = await asyncio.to_thread(
            self._uploads.create, upload, request.header, request.size_bytes
        )
        return pb.CreateUploadResponse(upload=begun)

    async def GetUpload(
        self, request: pb.GetUploadRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetUploadResponse:
        """See dataset.proto."""
        name = _own_upload(request.name, context)
        return pb.GetUploadResponse(upload=await asyncio.to_thread(self._uploads.get, name))

    async def AppendUpload(
        self,
        request_iterator: AsyncIterator[pb.AppendUploadRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> pb.AppendUploadResponse:
        """See dataset.proto."""
        first = await anext(request_iterator, pb.AppendUploadRequest())
        if not first.HasField("position"):
            raise FieldInvalidError("position", "", "be the first message")
        name = _own_upload(first.position.name, context, "position.name")
        chunks = _chunks(request_iterator)
        upload = await self._uploads.append(name, first.position.offset, chunks)
        return pb.AppendUploadResponse(upload=upload)

    async def CompleteUpload(
        self, request: pb.CompleteUploadRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.CompleteUploadResponse:
        """See dataset.proto."""
        name = _own_upload(request.name, context)
        return pb.CompleteUploadResponse(dataset=await self._uploads.complete(name))

    async def DeleteUpload(
        self, request: pb.DeleteUploadRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.DeleteUploadResponse:
        """See dataset.proto."""
        await self._uploads.delete(_own_upload(request.name, context))
        return pb.DeleteUploadResponse()


def require_sight(caller: Caller, tenant: str) -> None:
    """Refuse who may neither read nor train in `tenant`.

    Raises:
        PermissionDeniedError: The caller may not.
    """
    if not caller.may("train", tenant):
        caller.require("read", tenant)


def _own_upload(
    text: str, context: grpc.aio.ServicerContext[Any, Any], field: str = "name"
) -> UploadName:
    name = UploadName.parse(text, field)
    caller_of(context).require("train", name.tenant)
    return name


async def _chunks(
    requests: AsyncIterator[pb.CreateDatasetRequest] | AsyncIterator[pb.AppendUploadRequest],
) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise FieldInvalidError("chunk", request.WhichOneof("part"), "follow the first message")
        yield request.chunk
