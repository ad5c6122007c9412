"""Reads published versions from the registry over gRPC."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

from collections.abc import AsyncIterator, Mapping
from typing import Final

import grpc

from servery.errors import ApiError
from servery.errors.v1 import error_reason_pb2 as reasons
from servery.errors.v1.error_reason_pb2 import ErrorReason
from servery.registry.v1 import registry_pb2 as pb
from servery.registry.v1 import registry_pb2_grpc as pb_grpc
from servery_rpc.errors import DependencyUnavailableError, ServeryError
from servery_rpc.names import AliasName, VersionName
from servery_trainer.base_version import AliasNotFoundError, VersionNotFoundError

_CALL_S: Final = 30.0
_FILE_S: Final = 1800.0


class RegistryVersions:
    """`Versions` of the registry behind a channel.

    The registry lets the trainer read everything: whether its caller may is to be asked before.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._registry = pb_grpc.RegistryServiceStub(channel)

    async def pointed_at(self, alias: AliasName) -> VersionName:
        """See `Versions`."""
        try:
            response = await self._registry.GetAlias(
                pb.GetAliasRequest(name=str(alias)), timeout=_CALL_S
            )
        except grpc.aio.AioRpcError as error:
            raise _failure(error, str(alias)) from error
        return VersionName.parse(response.alias.version)

    async def digests(self, version: VersionName) -> Mapping[str, str]:
        """See `Versions`."""
        try:
            response = await self._registry.GetVersion(
                pb.GetVersionRequest(name=str(version)), timeout=_CALL_S
            )
        except grpc.aio.AioRpcError as error:
            raise _failure(error, str(version)) from error
        return {file.path: file.sha256 for file in response.version.files}

    async def read(self, version: VersionName, path: str) -> AsyncIterator[bytes]:
        """See `Versions`."""
        request = pb.ReadFileRequest(name=str(version), path=path)
        try:
            async for response in self._registry.ReadFile(request, timeout=_FILE_S):
                yield response.chunk
        except grpc.aio.AioRpcError as error:
            raise _failure(error, str(version)) from error


def _failure(error: grpc.aio.AioRpcError, name: str) -> ServeryError:
    """Tell what is not there from a registry that does not answer as it should."""
    said = ApiError.of(error).reason
    if said == ErrorReason.Name(reasons.ERROR_REASON_ALIAS_NOT_FOUND):
        return AliasNotFoundError(name)
    if error.code() is grpc.StatusCode.NOT_FOUND:
        return VersionNotFoundError(name)
    return DependencyUnavailableError("registry")
