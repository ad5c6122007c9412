"""A real registry process, and what a publisher does with it."""

from __future__ import annotations  # The async stub exists only in the .pyi.

import hashlib
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from servery.registry.v1 import registry_pb2 as pb
from servery.registry.v1 import registry_pb2_grpc as pb_grpc


class RegistryProcess:
    """A registry that can be killed and started again."""

    def __init__(self, root: Path) -> None:
        self.data_dir = root / "registry"
        self.address = f"unix:{root}/r.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers."""
        command = [sys.executable, "-m", "servery_registry", "--log-level", "error"]
        place = ["--data-dir", str(self.data_dir), "--listen", self.address]
        self._process = subprocess.Popen([*command, *place])
        with grpc.insecure_channel(self.address) as channel:
            grpc.channel_ready_future(channel).result(timeout=60)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    @asynccontextmanager
    async def publisher(self, model: str = "") -> AsyncIterator[Publisher]:
        """Publish versions of one model; a new one if none is named."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub = pb_grpc.RegistryServiceStub(channel)
            yield Publisher(stub, model or f"m-{uuid.uuid4().hex}")


class Publisher:
    """Registers versions of a model and moves its aliases."""

    def __init__(self, stub: pb_grpc.RegistryServiceAsyncStub, model: str) -> None:
        self.model = model
        self._stub = stub

    async def register(self, *bundles: Mapping[str, bytes], tenant: str = "default") -> pb.Version:
        """Register versions 1, 2, …; return the last."""
        for files in bundles:
            parts = _parts(files, self._name(tenant))
            response = await self._stub.RegisterVersion(parts)
        return response.version

    async def point(self, number: int, alias: str = "production", tenant: str = "default") -> None:
        name, etag = f"{self._name(tenant)}/aliases/{alias}", ""
        model = await self._stub.GetModel(pb.GetModelRequest(name=self._name(tenant)))
        for existing in model.model.aliases:
            if existing.name == name:
                etag = existing.etag
        version = f"{self._name(tenant)}/versions/{number}"
        wanted = pb.Alias(name=name, version=version, etag=etag)
        await self._stub.SetAlias(pb.SetAliasRequest(alias=wanted))

    async def unpoint(self, alias: str = "production") -> None:
        name = f"{self._name('default')}/aliases/{alias}"
        etag = (await self._stub.GetAlias(pb.GetAliasRequest(name=name))).alias.etag
        await self._stub.DeleteAlias(pb.DeleteAliasRequest(name=name, etag=etag))

    def _name(self, tenant: str) -> str:
        return f"tenants/{tenant}/models/{self.model}"


def _parts(files: Mapping[str, bytes], model: str) -> Iterator[pb.RegisterVersionRequest]:
    declared = [
        pb.File(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in files.items()
    ]
    header = pb.RegisterVersionRequest.Header(parent=model, files=declared)
    yield pb.RegisterVersionRequest(header=header)
    for data in files.values():
        yield pb.RegisterVersionRequest(chunk=data)
