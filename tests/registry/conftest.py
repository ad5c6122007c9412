"""A registry behind a real channel, and bundles to send to it."""

from __future__ import annotations  # The async stub exists only in the .pyi.

import asyncio
import base64
import hashlib
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from servery.errors import ApiError
from servery.registry.v1 import registry_pb2 as pb
from servery.registry.v1 import registry_pb2_grpc as pb_grpc
from servery_registry.database import open_database
from servery_registry.sandbox import AdmissionLimits
from servery_registry.service import Registry, open_registry
from servery_registry.sql_store import SqlStore
from servery_registry.store import NewVersion
from servery_registry.version import File
from servery_rpc.identity import CLAIMS_HEADER
from servery_rpc.names import ModelName
from servery_rpc.server import serving
from servery_rpc.settings import ServerSettings

MODEL = "tenants/acme/models/digits"
MODELS = ["apples", "bears", "digits", "digits-two", "zebras"]
LIMIT_BYTES = 4 * 1024 * 1024


@dataclass
class Clock:
    """A clock that a test moves."""

    time: datetime = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def pass_hours(self, hours: float) -> None:
        self.time += timedelta(hours=hours)


def graph(nodes: Sequence[Any] | None = None, weights: Any = None) -> onnx.ModelProto:
    """A graph from `x` FP32 [N, 2] to `p` FP32 [N, 2]."""
    if nodes is None:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["l"]), softmax("l")]
    if weights is None:
        weights = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1, 2, 3, 4])
    x, p = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("x", "p"))
    made = helper.make_graph(nodes, "g", [x], [p], [weights])
    opsets = [helper.make_opsetid("", 18)]
    model: onnx.ModelProto = helper.make_model(made, opset_imports=opsets, ir_version=10)
    return model


def softmax(source: str) -> Any:
    return helper.make_node("Softmax", [source], ["p"])


def signature() -> dict[str, Any]:
    return {
        "task": "tabular_classification",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2], "meaning": "columns"}],
        "outputs": [{"name": "p", "datatype": "FP32", "shape": [-1, 2], "labels": ["a", "b"]}],
    }


def npz(**changes: Any) -> bytes:
    """The golden rows of `graph`, with `__` in keys standing for a colon."""
    arrays: dict[str, Any] = {
        "input:x": np.ones((3, 2), np.float32),
        "output:p": np.full((3, 2), 0.5, np.float32),
        "tolerance": np.float64(1e-5),
    }
    arrays |= {key.replace("__", ":"): value for key, value in changes.items()}
    stream = io.BytesIO()
    np.savez(stream, **{key: value for key, value in arrays.items() if value is not None})
    return stream.getvalue()


def bundle(**changes: bytes | None) -> dict[str, bytes]:
    """Files of a good bundle, with `_dot_` in keys standing for a dot; None leaves one out."""
    files: dict[str, bytes | None] = {
        "model.onnx": graph().SerializeToString(),
        "signature.json": json.dumps(signature()).encode(),
        "golden.npz": npz(),
    }
    files |= {key.replace("_dot_", "."): value for key, value in changes.items()}
    return {path: data for path, data in files.items() if data is not None}


def declare(files: Mapping[str, bytes]) -> list[pb.File]:
    return [
        pb.File(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in files.items()
    ]


def messages(
    files: Mapping[str, bytes],
    declared: Sequence[pb.File] | None = None,
    chunk_bytes: int = 1000,
    **header: Any,
) -> Iterator[pb.RegisterVersionRequest]:
    """The messages of one upload, in chunks that cross the borders of the files."""
    header = {"parent": MODEL, "files": declare(files) if declared is None else declared} | header
    yield pb.RegisterVersionRequest(header=pb.RegisterVersionRequest.Header(**header))
    data = b"".join(files.values())
    for start in range(0, len(data), chunk_bytes):
        yield pb.RegisterVersionRequest(chunk=data[start : start + chunk_bytes])


def claims(tenant: str = "acme", /, **permissions: list[str]) -> list[tuple[str, str]]:
    """The header by which Envoy tells who calls."""
    payload = {"tenant": tenant, "permissions": permissions, "sub": f"tenants/{tenant}/apiKeys/k"}
    return [(CLAIMS_HEADER, base64.urlsafe_b64encode(json.dumps(payload).encode()).decode())]


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a `condition` on the disk holds, at most 10 seconds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - no event tells what a directory holds
            await asyncio.sleep(0.01)


async def failure(call: Any) -> ApiError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return ApiError.of(caught.value)


@dataclass
class Client:
    """A stub, and the calls that most tests make."""

    stub: pb_grpc.RegistryServiceAsyncStub
    data_dir: Path
    registry: Registry

    async def register(self, files: Mapping[str, bytes] | None = None, **kwargs: Any) -> pb.Version:
        metadata = kwargs.pop("metadata", None)
        parts = messages(bundle() if files is None else files, **kwargs)
        return (await self.stub.RegisterVersion(parts, metadata=metadata)).version

    async def read(self, name: str, path: str, offset_bytes: int = 0) -> bytes:
        request = pb.ReadFileRequest(name=name, path=path, offset_bytes=offset_bytes)
        return b"".join([part.chunk async for part in self.stub.ReadFile(request)])

    async def versions(self, parent: str = MODEL) -> list[str]:
        listed = await self.stub.ListVersions(pb.ListVersionsRequest(parent=parent))
        return [version.name for version in listed.versions]

    async def set_alias(
        self, number: int, etag: str = "", alias: str = "production", model: str = MODEL
    ) -> pb.Alias:
        wanted = pb.Alias(
            name=f"{model}/aliases/{alias}", version=f"{model}/versions/{number}", etag=etag
        )
        return (await self.stub.SetAlias(pb.SetAliasRequest(alias=wanted))).alias

    def leftovers(self) -> list[str]:
        """What lies in the staging area and among the blobs."""
        return sorted(
            path.name for area in ("staging", "blobs") for path in (self.data_dir / area).iterdir()
        )


@asynccontextmanager
async def opened(
    data_dir: Path, clock: Clock, limits: AdmissionLimits | None = None
) -> AsyncIterator[Client]:
    """Serve the registry in `data_dir` on a unix socket beside it."""
    limits = limits or AdmissionLimits(memory_bytes=2 * 1024**3, wall_s=30)
    socket = f"unix:{data_dir.parent}/r.sock"
    async with (
        open_registry(data_dir, LIMIT_BYTES, limits, clock) as registry,
        serving(ServerSettings(listen=socket, drain_s=0), registry.service) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield Client(pb_grpc.RegistryServiceStub(channel), data_dir, registry)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def client(tmp_path: Path, clock: Clock) -> AsyncIterator[Client]:
    async with opened(tmp_path / "data", clock) as client:
        yield client


@pytest.fixture
async def many(tmp_path: Path, clock: Clock) -> AsyncIterator[Client]:
    """A registry with `MODELS` in two tenants and four versions of `digits`, without bytes."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with open_database(data_dir / "registry.db") as engine:
        store = SqlStore(engine, clock, lambda: None)
        for tenant in ("acme", "other"):
            for model in [*MODELS, "digits", "digits", "digits"]:
                files = [File("model.onnx", 1, "a" * 64)]
                store.add_version(
                    NewVersion(model=ModelName(tenant, model), files=files, metrics={}), None
                )
    async with opened(data_dir, clock) as client:
        yield client
