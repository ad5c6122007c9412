"""Brings the outcome of training jobs to the registry over gRPC."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, BinaryIO, Final

import grpc

from servery.errors import ApiError
from servery.errors.v1 import error_reason_pb2 as reasons
from servery.errors.v1.error_reason_pb2 import ErrorReason
from servery.registry.v1 import registry_pb2 as pb
from servery.registry.v1 import registry_pb2_grpc as pb_grpc
from servery.trainer.v1 import training_pb2
from servery_rpc.errors import DependencyUnavailableError
from servery_rpc.names import AliasName
from servery_trainer.publication import (
    PublicationRefusedError,
    PublicationWithdrawnError,
    RegistryFaultError,
)

_CHUNK_BYTES: Final = 1024**2
_CALL_S: Final = 30.0
_UPLOAD_S: Final = 1800.0
_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 20_000),  # A registry that is gone is noticed within 30 s.
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)
_NO_ANSWER: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,  # By a registry that drains.
    }
)
"""Nothing in it says that there is a registry: it is tried again for long."""

_FAULTS: Final = frozenset(
    {
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,  # Also what grpc.aio makes of an answer that overtakes a write.
        grpc.StatusCode.UNKNOWN,
    }
)
"""Nothing in it says that the bundle is at fault: it is tried again, but not for ever."""


def dial_registry(address: str) -> grpc.aio.Channel:
    """Open a channel to the registry; it connects when it is first used."""
    return grpc.aio.insecure_channel(address, options=_OPTIONS)


class RegistryPublisher:
    """A `Publisher` to the registry behind a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._registry = pb_grpc.RegistryServiceStub(channel)

    async def register(
        self,
        job: training_pb2.TrainingJob,
        bundle: Path,
        commit: Callable[[], Awaitable[bool]],
    ) -> str:
        """See `Publisher`."""
        files = await asyncio.to_thread(describe, bundle)
        header = pb.RegisterVersionRequest.Header(
            parent=job.spec.publication.model,
            files=files,
            metrics=job.result.metrics,
            # The same for each try, also by a trainer that was restarted in between.
            request_id=str(uuid.uuid5(uuid.NAMESPACE_URL, job.name)),
        )
        try:
            response = await self._upload(header, bundle, commit)
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from error
        return response.version.name

    async def point(self, alias: AliasName, version: str) -> None:
        """See `Publisher`."""
        try:
            etag = await self._etag(alias)
            await self._registry.SetAlias(
                pb.SetAliasRequest(alias=pb.Alias(name=str(alias), version=version, etag=etag)),
                timeout=_CALL_S,
            )
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from error

    async def _upload(
        self,
        header: pb.RegisterVersionRequest.Header,
        bundle: Path,
        commit: Callable[[], Awaitable[bool]],
    ) -> pb.RegisterVersionResponse:
        call: Any = self._registry.RegisterVersion(timeout=_UPLOAD_S)
        try:
            # The registry may answer before it has read all: with a refusal, or with the version
            # that an earlier try made. Then writing fails, and the call itself says what it was.
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await self._send(call, header, bundle, commit)
            response: pb.RegisterVersionResponse = await call
        finally:
            call.cancel()
        return response

    async def _send(
        self,
        call: Any,
        header: pb.RegisterVersionRequest.Header,
        bundle: Path,
        commit: Callable[[], Awaitable[bool]],
    ) -> None:
        await call.write(pb.RegisterVersionRequest(header=header))
        held = b""  # One chunk behind, to know the last.
        for file in header.files:
            with _opened(bundle / file.path) as content:
                while chunk := await asyncio.to_thread(content.read, _CHUNK_BYTES):
                    if held:
                        await call.write(pb.RegisterVersionRequest(chunk=held))
                    held = chunk
        if not await commit():
            raise PublicationWithdrawnError
        await call.write(pb.RegisterVersionRequest(chunk=held))
        await call.done_writing()

    async def _etag(self, alias: AliasName) -> str:
        """The etag of the alias as it is; empty if there is none."""
        try:
            response = await self._registry.GetAlias(
                pb.GetAliasRequest(name=str(alias)), timeout=_CALL_S
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return ""
            raise
        return response.alias.etag


def _opened(path: Path) -> BinaryIO:
    """Open a file; on the event loop, as a thread would do so even after a cancellation."""
    return path.open("rb")


def describe(bundle: Path) -> list[pb.File]:
    """Return every file of a bundle with its size and digest, by path. Blocks."""
    files = []
    for path in sorted(bundle.iterdir()):
        with path.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        files.append(pb.File(path=path.name, size_bytes=path.stat().st_size, sha256=sha256))
    return files


def _failure(error: grpc.aio.AioRpcError) -> Exception:
    """Tell a registry that does not answer from one that fails, and both from one that refuses."""
    if error.code() in _NO_ANSWER:
        return DependencyUnavailableError("registry")
    said = ApiError.of(error)
    if error.code() in _FAULTS:
        return RegistryFaultError(str(said))
    known = said.reason in ErrorReason.keys()  # noqa: SIM118 an enum wrapper is no mapping
    return PublicationRefusedError(
        training_pb2.JobError(
            reason=ErrorReason.Value(said.reason)
            if known
            else reasons.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
            message=f"the registry refuses the model: {said}",
            metadata=said.metadata if known else {"service": "registry"},
        )
    )
