"""The way to a real registry: whole bundles, once each, and aliases that others move too."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.registry.v1 import registry_pb2 as pb
from servery.registry.v1 import registry_pb2_grpc as pb_grpc
from servery.trainer.v1 import training_pb2
from servery_rpc.errors import DependencyUnavailableError
from servery_rpc.names import AliasName, ModelName
from servery_trainer.publication import (
    PublicationRefusedError,
    PublicationWithdrawnError,
    RegistryFaultError,
)
from servery_trainer.publisher import RegistryPublisher, dial_registry
from tests.trainer.service import NOWHERE, failure


@pytest.fixture
async def channel(registry: str) -> AsyncIterator[grpc.aio.Channel]:
    async with dial_registry(registry) as channel:
        yield channel


@pytest.fixture
def publisher(channel: grpc.aio.Channel) -> RegistryPublisher:
    return RegistryPublisher(channel)


async def yes() -> bool:
    return True


async def no() -> bool:
    return False


def job(model: str, name: str = "a") -> training_pb2.TrainingJob:
    return training_pb2.TrainingJob(
        name=f"tenants/default/trainingJobs/{model}-{name}",
        spec=training_pb2.TrainingSpec(
            publication=training_pb2.Publication(model=f"tenants/default/models/{model}")
        ),
        result=training_pb2.TrainingResult(metrics={"accuracy": 0.5}),
    )


async def settle(publisher: RegistryPublisher, of: training_pb2.TrainingJob, bundle: Path) -> str:
    """Register as the scheduler does: until there is an answer."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(DependencyUnavailableError, RegistryFaultError):
                return await publisher.register(of, bundle, yes)


async def versions(channel: grpc.aio.Channel, model: str) -> list[str]:
    request = pb.ListVersionsRequest(parent=f"tenants/default/models/{model}")
    stub = pb_grpc.RegistryServiceStub(channel)
    return [version.name for version in (await stub.ListVersions(request)).versions]


async def test_a_bundle_arrives_byte_by_byte(
    publisher: RegistryPublisher, channel: grpc.aio.Channel, bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle, tmp_path, dirs_exist_ok=True)
    content = bytes(range(256)) * 5000  # Over one chunk.
    (tmp_path / "extra.bin").write_bytes(content)
    (tmp_path / "empty.txt").touch()
    version = await publisher.register(job("whole"), tmp_path, yes)
    stub = pb_grpc.RegistryServiceStub(channel)
    call = stub.ReadFile(pb.ReadFileRequest(name=version, path="extra.bin"))
    assert b"".join([part.chunk async for part in call]) == content


async def test_the_same_job_makes_one_version(
    publisher: RegistryPublisher, channel: grpc.aio.Channel, bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(bundle, tmp_path, dirs_exist_ok=True)
    # More than the connection holds, so that the repeated upload is answered while it is sent.
    (tmp_path / "extra.bin").write_bytes(bytes(16 * 1024**2))
    first = await settle(publisher, job("once"), tmp_path)
    assert await settle(publisher, job("once"), tmp_path) == first
    second = await settle(publisher, job("once", "b"), tmp_path)
    assert await versions(channel, "once") == [second, first]


async def test_two_jobs_at_once_make_two_versions_of_one_model(
    publisher: RegistryPublisher, channel: grpc.aio.Channel, bundle: Path
) -> None:
    jobs = [job("shared", name) for name in "ab"]
    made = await asyncio.gather(*(settle(publisher, each, bundle) for each in jobs))
    assert sorted(made) == sorted(await versions(channel, "shared"))
    assert len(set(made)) == 2


async def test_what_is_withdrawn_before_the_last_bytes_never_shows(
    publisher: RegistryPublisher, channel: grpc.aio.Channel, bundle: Path
) -> None:
    with pytest.raises(PublicationWithdrawnError):
        await publisher.register(job("withdrawn"), bundle, no)
    error = await failure(versions(channel, "withdrawn"))
    assert error.reason == "ERROR_REASON_MODEL_NOT_FOUND"


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        pytest.param("model.onnx", b"no", reasons.ERROR_REASON_GRAPH_REFUSED, id="graph"),
        pytest.param("signature.json", b"no", reasons.ERROR_REASON_BUNDLE_INVALID, id="file"),
        pytest.param("a b", b"no", reasons.ERROR_REASON_FIELD_INVALID, id="path, refused early"),
    ],
)
async def test_a_refusal_keeps_its_reason(
    publisher: RegistryPublisher,
    bundle: Path,
    tmp_path: Path,
    file: str,
    content: bytes,
    reason: "reasons.ErrorReason.ValueType",
) -> None:
    shutil.copytree(bundle, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(PublicationRefusedError) as refused:
        await settle(publisher, job("refused"), tmp_path)
    assert refused.value.error.reason == reason
    assert refused.value.error.metadata


async def test_no_registry_is_no_refusal(bundle: Path) -> None:
    async with dial_registry(NOWHERE) as channel:
        publisher = RegistryPublisher(channel)
        with pytest.raises(DependencyUnavailableError):
            await publisher.register(job("nowhere"), bundle, yes)
        alias = AliasName(ModelName("default", "nowhere"), "production")
        with pytest.raises(DependencyUnavailableError):
            await publisher.point(alias, "tenants/default/models/nowhere/versions/1")


async def test_an_alias_is_made_then_moved(
    publisher: RegistryPublisher, channel: grpc.aio.Channel, bundle: Path
) -> None:
    alias = AliasName(ModelName("default", "moved"), "production")
    for name in "ab":
        version = await publisher.register(job("moved", name), bundle, yes)
        await publisher.point(alias, version)
        await publisher.point(alias, version)
        stub = pb_grpc.RegistryServiceStub(channel)
        got = await stub.GetAlias(pb.GetAliasRequest(name=str(alias)))
        assert got.alias.version == version


async def test_an_alias_of_no_version_is_refused(publisher: RegistryPublisher) -> None:
    alias = AliasName(ModelName("default", "none"), "production")
    with pytest.raises(PublicationRefusedError) as refused:
        await publisher.point(alias, "tenants/default/models/none/versions/9")
    assert refused.value.error.reason == reasons.ERROR_REASON_VERSION_NOT_FOUND
