"""What survives a crash: all that was acknowledged, and nothing half."""

from __future__ import annotations  # The async stub exists only in the .pyi.

import asyncio
import hashlib
import random
import sys
import uuid
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from servery.registry.v1 import registry_pb2 as pb
from servery.registry.v1 import registry_pb2_grpc as pb_grpc
from servery_registry.artifacts import LocalBlobs, Staging
from servery_registry.threads import run_to_end
from tests.registry.conftest import MODEL, Client, Clock, bundle, failure, messages, opened

_IMPATIENT = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 100)]


def test_a_blob_is_replaced_by_the_same_bytes(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    for _ in range(2):
        (tmp_path / "staged").write_bytes(b"x")
        blobs.publish({"f" * 64: tmp_path / "staged"})
    assert (tmp_path / "blobs" / ("f" * 64)).read_bytes() == b"x"


async def test_a_lent_directory_is_deleted_whenever_its_user_is_cancelled(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "staging")

    async def use() -> None:
        async with staging.directory() as directory:
            await run_to_end((directory / "file").write_bytes, b"x")
            await asyncio.Event().wait()

    for turns in range(40):
        task = asyncio.ensure_future(use())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert list((tmp_path / "staging").iterdir()) == []


async def test_leftovers_of_a_crash_are_swept_and_versions_stay(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    data_dir = tmp_path / "data"
    async with opened(data_dir, clock) as client:
        version = await client.register()
        kept = client.leftovers()
    # A crash while bytes arrived, and one between the blobs and the commit.
    (data_dir / "staging" / "broken").mkdir()
    (data_dir / "staging" / "broken" / "model.onnx").write_bytes(b"half")
    (data_dir / "blobs" / ("0" * 64)).write_bytes(b"no version has it")
    async with opened(data_dir, clock) as client:
        assert client.leftovers() == kept
        assert await client.versions() == [version.name]
        assert await client.read(version.name, "model.onnx") == bundle()["model.onnx"]
    assert not caplog.records
    (data_dir / "blobs" / version.files[0].sha256).unlink()
    async with opened(data_dir, clock):
        assert version.files[0].sha256 in caplog.text


async def test_a_disk_that_fails_before_the_commit_leaves_nothing_visible(
    client: Client,
) -> None:
    blobs = client.data_dir / "blobs"
    blobs.rmdir()
    blobs.write_bytes(b"no directory")
    again = str(uuid.uuid4())
    error = await failure(client.register(request_id=again))
    assert error.code is grpc.StatusCode.INTERNAL
    assert (await failure(client.versions())).reason == "ERROR_REASON_MODEL_NOT_FOUND"
    blobs.unlink()
    blobs.mkdir()
    version = await client.register(request_id=again)
    assert version.name == f"{MODEL}/versions/1"
    assert await client.read(version.name, "golden.npz") == bundle()["golden.npz"]


@asynccontextmanager
async def running(data_dir: Path) -> AsyncIterator[tuple[Process, grpc.aio.Channel]]:
    """A real registry process that accepts calls; killed at the end if it still lives."""
    address = f"unix:{data_dir.parent}/r.sock"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "servery_registry", "--data-dir", str(data_dir)),
        *("--listen", address, "--drain-s", "1"),
        stdin=DEVNULL,
        stderr=DEVNULL,
    )
    try:
        async with grpc.aio.insecure_channel(address, options=_IMPATIENT) as channel:
            stub = pb_grpc.RegistryServiceStub(channel)
            request = pb.ListModelsRequest(parent="tenants/acme")
            await stub.ListModels(request, wait_for_ready=True, timeout=30)
            yield process, channel
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def upload_until_it_dies(
    channel: grpc.aio.Channel, name: str, acknowledged: dict[str, dict[str, bytes]]
) -> None:
    stub = pb_grpc.RegistryServiceStub(channel)
    for count in range(1000):
        note = f"{name} {count}".encode()
        files = bundle(note=note, payload=hashlib.sha256(note).digest() * 10_000)
        try:
            answer = await stub.RegisterVersion(messages(files, chunk_bytes=50_000))
        except grpc.aio.AioRpcError:
            return
        acknowledged[answer.version.name] = files


async def stored(channel: grpc.aio.Channel) -> dict[str, dict[str, bytes]]:
    """Read every visible version back, through the wire, whole."""
    stub = pb_grpc.RegistryServiceStub(channel)
    everything: dict[str, dict[str, bytes]] = {}
    try:
        listed = await stub.ListVersions(pb.ListVersionsRequest(parent=MODEL, page_size=1000))
    except grpc.aio.AioRpcError:
        return everything  # No version got through yet.
    for version in listed.versions:
        files = everything[version.name] = {}
        for file in version.files:
            request = pb.ReadFileRequest(name=version.name, path=file.path)
            data = b"".join([part.chunk async for part in stub.ReadFile(request)])
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size_bytes, file.sha256)
            files[file.path] = data
    return everything


@pytest.mark.slow
async def test_nothing_acknowledged_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    chance = random.Random()  # noqa: S311 - moments, not secrets
    data_dir = tmp_path / "data"
    acknowledged: dict[str, dict[str, bytes]] = {}
    for life in range(6):
        async with running(data_dir) as (process, channel):
            assert not any((data_dir / "staging").iterdir())
            found = await stored(channel)
            assert acknowledged.items() <= found.items()
            assert found.keys() == {f"{MODEL}/versions/{n + 1}" for n in range(len(found))}
            for files in found.values():
                assert files.keys() == {*bundle(), "note", "payload"}
            needed = {hashlib.sha256(d).hexdigest() for f in found.values() for d in f.values()}
            assert {path.name for path in (data_dir / "blobs").iterdir()} == needed
            uploads = [
                asyncio.ensure_future(upload_until_it_dies(channel, f"{life} {n}", acknowledged))
                for n in range(3)
            ]
            await asyncio.wait(uploads, timeout=chance.uniform(0.5, 2.5))
            process.kill()
            await asyncio.gather(*uploads)
    assert acknowledged
