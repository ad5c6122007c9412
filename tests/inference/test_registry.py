"""Serving what a real registry process announces, while it and we come and go."""

from __future__ import annotations  # The async stub exists only in the .pyi.

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.serving import serving_inference
from servery_inference.settings import InferenceSettings
from tests.inference.calling import answers, failure, index, infer_request, stub
from tests.inference.conftest import WORKERS
from tests.inference.graphs import (
    explained_plus_bundle,
    external_plus_bundle,
    parts,
    plus_bundle,
)
from tests.inference.registries import Publisher, RegistryProcess

X = np.zeros((1, 2), "<f4")
SETTLED_S = 30


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """One registry for many tests, each of which has a model of its own."""
    process = RegistryProcess(tmp_path_factory.mktemp("r"))
    process.start()
    yield process
    process.kill()


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[RegistryProcess]:
    """A registry that the test may kill."""
    process = RegistryProcess(tmp_path)
    process.start()
    yield process
    process.kill()


@pytest.fixture
async def publisher(registry: RegistryProcess) -> AsyncIterator[Publisher]:
    async with registry.publisher() as publisher:
        yield publisher


def settings(registry: RegistryProcess, tmp_path: Path) -> InferenceSettings:
    return InferenceSettings(
        registry=registry.address,
        cache_dir=tmp_path / "cache",
        listen=f"unix:{tmp_path}/i.sock",
        drain_s=0,
        workers=WORKERS,
    )


@asynccontextmanager
async def inference(registry: RegistryProcess, tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    """Follow the registry; give a channel once the server is ready."""
    async with (
        serving_inference(settings(registry, tmp_path)) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        await asyncio.wait_for(server.ready.wait(), SETTLED_S)
        yield channel


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SETTLED_S):
        while not await holds():  # noqa: ASYNC110  it holds in another process
            await asyncio.sleep(0.02)


async def infer(channel: grpc.aio.Channel, model: str, version: str = "") -> str:
    """Call the model; check that the answer is that of the version it claims to be from."""
    request = infer_request(model, {"x": X}, model_version=version)
    response = await stub(channel).ModelInfer(request)
    assert (answers(response)["y"] == float(response.model_version)).all()
    return response.model_version


async def until_serves(channel: grpc.aio.Channel, model: str, version: str) -> None:
    async def serves() -> bool:
        try:
            return await infer(channel, model) == version
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return False

    await eventually(serves)


async def until_index_says(
    channel: grpc.aio.Channel, model: str, version: str, state: str, reason: str
) -> None:
    async def says() -> bool:
        found = (await index(channel)).get((model, version), ("", ""))
        return found[0] == state and reason in found[1]

    await eventually(says)


async def test_weights_come_in_a_file_of_their_own_and_are_verified(
    registry: RegistryProcess, publisher: Publisher, tmp_path: Path
) -> None:
    await publisher.register(external_plus_bundle(1))
    await publisher.point(1)
    async with inference(registry, tmp_path) as channel:
        assert await infer(channel, publisher.model) == "1"
    [weights] = (tmp_path / "cache" / "bundles").glob("*/weights.bin")
    weights.write_bytes(np.array([7, 7], "<f4").tobytes())
    async with inference(registry, tmp_path) as channel:
        assert await infer(channel, publisher.model) == "1"


async def test_what_production_points_at_is_served(
    registry: RegistryProcess, publisher: Publisher, tmp_path: Path
) -> None:
    await publisher.register(plus_bundle(1), plus_bundle(2))
    await publisher.register(plus_bundle(1), tenant="acme")
    await publisher.point(1)
    await publisher.point(1, tenant="acme")
    async with inference(registry, tmp_path) as channel:
        assert await infer(channel, publisher.model) == "1"
        assert await infer(channel, f"acme.{publisher.model}") == "1"
        error = await failure(infer(channel, publisher.model, "2"))  # No alias points at it.
        assert error.code is grpc.StatusCode.NOT_FOUND


async def test_a_model_without_alias_is_listed_by_name(
    registry: RegistryProcess, publisher: Publisher, tmp_path: Path
) -> None:
    await publisher.register(plus_bundle(1))
    async with inference(registry, tmp_path) as channel:
        assert (await index(channel))[(publisher.model, "")] == ("", "")


async def test_an_alias_beside_production_makes_a_version_askable_by_number(
    registry: RegistryProcess, publisher: Publisher, tmp_path: Path
) -> None:
    model = publisher.model
    await publisher.register(plus_bundle(1), plus_bundle(2))
    await publisher.point(1)
    async with inference(registry, tmp_path) as channel:
        await publisher.point(2, alias="canary")
        await until_index_says(channel, model, "2", "READY", "")
        metadata = await stub(channel).ModelMetadata(pb.ModelMetadataRequest(name=model))
        assert metadata.versions == ["1", "2"]
        assert [await infer(channel, model), await infer(channel, model, "2")] == ["1", "2"]
        await publisher.unpoint()
        await until_index_says(channel, model, "1", "UNAVAILABLE", "unloaded")
        error = await failure(infer(channel, model))
        assert error.message == f"Request for unknown model: '{model}' has no available versions"
        assert await infer(channel, model, "2") == "2"


async def test_a_new_version_takes_over_under_load_without_one_failed_request(
    registry: RegistryProcess, publisher: Publisher, tmp_path: Path
) -> None:
    await publisher.register(plus_bundle(1), plus_bundle(2))
    await publisher.point(1)
    seen: list[str] = []
    done = asyncio.Event()

    async def call_on_and_on(channel: grpc.aio.Channel) -> None:
        while not done.is_set():
            seen.append(await infer(channel, publisher.model))

    async with inference(registry, tmp_path) as channel, asyncio.TaskGroup() as load:
        for _ in range(8):
            load.create_task(call_on_and_on(channel))
        for target in (2, 1, 2):
            await publisher.point(target)
            await until_serves(channel, publisher.model, str(target))
        await until_index_says(channel, publisher.model, "1", "UNAVAILABLE", "unloaded")
        done.set()
    changes = [b for a, b in zip(["", *seen], seen, strict=False) if a != b]
    assert changes[0] == "1"
    assert changes[-1] == "2"
    assert len(seen) > 50


async def test_a_version_whose_explanations_are_others_never_serves(
    registry: RegistryProcess, publisher: Publisher, tmp_path: Path
) -> None:
    wrong = {**explained_plus_bundle(2), "explain.onnx": parts(11)}
    await publisher.register(explained_plus_bundle(1), wrong)
    await publisher.point(1)
    async with inference(registry, tmp_path) as channel:
        await publisher.point(2)
        await until_index_says(channel, publisher.model, "2", "UNAVAILABLE", "explain.onnx")
        why = infer_request(publisher.model, {"x": X + 1})
        why.parameters["explain"].bool_param = True
        response = await stub(channel).ModelInfer(why)
        assert response.model_version == "1"
        assert answers(response)["parts"].tolist() == [[10, 10]]


async def test_a_version_that_does_not_reproduce_its_golden_rows_never_serves(
    registry: RegistryProcess, publisher: Publisher, tmp_path: Path
) -> None:
    await publisher.register(plus_bundle(1), plus_bundle(2, golden=2.5))
    await publisher.point(1)
    async with inference(registry, tmp_path) as channel:
        await publisher.point(2)
        await until_index_says(channel, publisher.model, "2", "UNAVAILABLE", "golden row 0")
        assert await infer(channel, publisher.model) == "1"
    async with inference(registry, tmp_path) as channel:  # A new process falls back on it, too.
        assert await infer(channel, publisher.model) == "1"


async def test_a_bundle_with_other_bytes_than_declared_never_serves(
    registry: RegistryProcess, publisher: Publisher, tmp_path: Path
) -> None:
    version = await publisher.register(plus_bundle(77))
    (graph,) = [file for file in version.files if file.path == "model.onnx"]
    blobs = [path for path in registry.data_dir.rglob(f"*{graph.sha256}*") if path.is_file()]
    assert blobs
    for blob in blobs:
        content = bytearray(blob.read_bytes())
        content[-1] ^= 1
        blob.chmod(0o600)
        blob.write_bytes(content)
    await publisher.point(1)
    async with inference(registry, tmp_path) as channel:
        assert (await index(channel))[(publisher.model, "1")][0] == "UNAVAILABLE"
        error = await failure(infer(channel, publisher.model))
        assert error.code is grpc.StatusCode.NOT_FOUND
        assert not (tmp_path / "cache" / "bundles" / version.digest).exists()


async def test_a_damaged_cache_is_brought_again(
    registry: RegistryProcess, publisher: Publisher, tmp_path: Path
) -> None:
    version = await publisher.register(plus_bundle(1), plus_bundle(2))
    await publisher.point(2)
    async with inference(registry, tmp_path):
        pass
    graph = tmp_path / "cache" / "bundles" / version.digest / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    (tmp_path / "cache" / "state.json").write_bytes(b"\0 no JSON")
    async with inference(registry, tmp_path) as channel:
        assert await infer(channel, publisher.model) == "2"


@pytest.mark.slow
async def test_a_registry_that_dies_and_returns_is_followed_again(
    mortal: RegistryProcess, tmp_path: Path
) -> None:
    async with mortal.publisher("plus") as publisher:
        await publisher.register(plus_bundle(1), plus_bundle(2))
        await publisher.point(1)
        async with inference(mortal, tmp_path) as channel:
            mortal.kill()
            assert await infer(channel, "plus") == "1"
            await asyncio.to_thread(mortal.start)
            await publisher.point(2)
            await until_serves(channel, "plus", "2")


@pytest.mark.slow
async def test_a_process_that_starts_without_the_registry_serves_what_it_served(
    mortal: RegistryProcess, tmp_path: Path
) -> None:
    bundles = tmp_path / "cache" / "bundles"

    async def only_one_is_kept() -> bool:
        return len(list(bundles.iterdir())) == 1

    async with mortal.publisher("plus") as publisher:
        await publisher.register(plus_bundle(1), plus_bundle(2))
        await publisher.point(1)
        async with inference(mortal, tmp_path) as channel:
            await publisher.point(2)
            await until_serves(channel, "plus", "2")
            await eventually(only_one_is_kept)
        mortal.kill()
        async with inference(mortal, tmp_path) as channel:
            assert await infer(channel, "plus") == "2"
            await asyncio.to_thread(mortal.start)
            await publisher.point(1)
            await until_serves(channel, "plus", "1")


@pytest.mark.slow
async def test_a_file_that_cannot_be_brought_now_is_brought_later(
    mortal: RegistryProcess, tmp_path: Path
) -> None:
    async with mortal.publisher("plus") as publisher:
        await publisher.register(plus_bundle(1))
        await publisher.point(1)
    async with inference(mortal, tmp_path):
        pass
    mortal.kill()
    (graph,) = (tmp_path / "cache" / "bundles").glob("*/model.onnx")
    graph.unlink()
    async with inference(mortal, tmp_path) as channel:
        state, reason = (await index(channel))[("plus", "1")]
        assert (state, "the registry" in reason) == ("UNAVAILABLE", True)
        await asyncio.to_thread(mortal.start)
        await until_serves(channel, "plus", "1")


@pytest.mark.slow
async def test_nothing_known_means_not_ready(tmp_path: Path) -> None:
    nobody = RegistryProcess(tmp_path)
    async with (
        serving_inference(settings(nobody, tmp_path)) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        assert not (await stub(channel).ServerReady(pb.ServerReadyRequest())).ready
        assert (await stub(channel).ServerLive(pb.ServerLiveRequest())).live
        await asyncio.to_thread(nobody.start)
        await asyncio.wait_for(server.ready.wait(), SETTLED_S)  # Nothing to serve is known, too.
        assert (await stub(channel).ServerReady(pb.ServerReadyRequest())).ready
    nobody.kill()
