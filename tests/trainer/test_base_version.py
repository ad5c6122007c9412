"""Jobs that start from a version: what is refused before they train, and what they are given."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from onnx import TensorProto, helper

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import DigestMismatchError, FieldInvalidError
from servery_rpc.names import AliasName, ModelName, VersionName
from servery_trainer.base_version import BaseVersion, fetch
from servery_trainer.bundle import signature
from servery_trainer.examples import load_examples
from servery_trainer.jobs import FAILED, SUCCEEDED
from servery_trainer.spec import parse_spec
from tests.trainer.service import (
    CSV,
    NOWHERE,
    Client,
    failure,
    running_registry,
    running_trainer,
    scripted,
    spec,
)
from tests.trainer.specs import table, tabular

VERSION = VersionName(ModelName("default", "m"), 1)
DIGEST = "d" * 64


def described(made: pb.TrainingSpec, path: Path) -> tuple[bytes, bytes]:
    """`lineage.json` and `signature.json` of what `made` makes of the data at `path`."""
    parsed = parse_spec(made)
    inputs = load_examples(parsed, path).inputs
    lineage = {
        "spec": json_format.MessageToDict(parsed.to_proto()),
        "weights_sha256": DIGEST,
    }
    told = signature(parsed.task.name, inputs, ())
    return json.dumps(lineage).encode(), json.dumps(told).encode()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    path.write_bytes(CSV)
    return path


def changed(**fields: Any) -> pb.TrainingSpec:
    """The spec of the base version, but for some fields."""
    asked = tabular()
    json_format.ParseDict(fields, asked)
    return asked


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(changed(), id="equal"),
        pytest.param(changed(dense={"dropout": 0.5}), id="other dropout"),
        pytest.param(changed(training={"maxEpochs": 2, "learningRate": 0.1}), id="other training"),
        pytest.param(changed(split={"seed": 3}), id="other split"),
    ],
)
def test_a_job_alike_may_go_on(data: Path, asked: pb.TrainingSpec) -> None:
    base = BaseVersion.parse(VERSION, *described(tabular(), data))
    wanted = parse_spec(asked)
    base.check(wanted, load_examples(wanted, data))


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        pytest.param(table("tabular_regression", target="y"), "base_version", id="other task"),
        pytest.param(changed(dense={"hiddenUnits": [8]}), "dense.hidden_units", id="other layers"),
        pytest.param(
            changed(training={"ensembleSize": 2}), "training.ensemble_size", id="more networks"
        ),
        pytest.param(changed(framework="FRAMEWORK_PYTORCH"), "framework", id="other framework"),
        pytest.param(tabular(features=["x"]), "dataset", id="fewer columns"),
        pytest.param(tabular(column_types={"x": 2}), "dataset", id="columns of another type"),
        pytest.param(
            changed(tabularClassification={"clip": {"x": {"lower": 0}}}),
            "tabular_classification.clip",
            id="other bounds",
        ),
        pytest.param(
            changed(tabularClassification={"missing": "MISSING_POLICY_IMPUTE_MODE"}),
            "tabular_classification.missing",
            id="other values for missing ones",
        ),
    ],
)
def test_a_job_of_another_kind_is_refused(data: Path, asked: pb.TrainingSpec, field: str) -> None:
    base = BaseVersion.parse(VERSION, *described(tabular(), data))
    wanted = parse_spec(asked)
    with pytest.raises(FieldInvalidError) as refused:
        base.check(wanted, load_examples(wanted, data))
    assert refused.value.metadata["field"] == f"training_job.spec.{field}"


def test_another_family_is_refused(data: Path) -> None:
    base = BaseVersion.parse(VERSION, *described(tabular(), data))
    wanted = parse_spec(changed(custom={"module": "build = None"}))
    with pytest.raises(FieldInvalidError) as refused:
        base.check(wanted, load_examples(wanted, data))
    assert refused.value.metadata["field"] == "training_job.spec.custom"


@pytest.mark.parametrize(
    ("lineage", "told"),
    [
        pytest.param(b"", b"", id="empty"),
        pytest.param(b"{}", b"{}", id="nothing"),
        pytest.param(b'{"spec": 3}', b'{"inputs": []}', id="no spec"),
        pytest.param(b"[" * 100_000, b"{}", id="deep"),
        pytest.param(b'{"spec": {"dataset": "x"}, "weights_sha256": ""}', b"{}", id="another spec"),
    ],
)
def test_what_the_trainer_did_not_make_is_refused(lineage: bytes, told: bytes) -> None:
    with pytest.raises(FieldInvalidError):
        BaseVersion.parse(VERSION, lineage, told)


class Changing:
    """`Versions` whose bytes are not those that were declared."""

    async def pointed_at(self, alias: AliasName) -> VersionName:
        raise NotImplementedError

    async def digests(self, version: VersionName) -> Mapping[str, str]:
        names = ("lineage.json", "signature.json", "weights.npz", "preprocessing.json")
        return dict.fromkeys(names, "0" * 64)

    async def read(self, version: VersionName, path: str) -> AsyncIterator[bytes]:
        yield b"{}"


async def test_bytes_that_are_not_the_declared_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DigestMismatchError):
        await fetch(Changing(), VERSION, tmp_path / "base")
    with pytest.raises(DigestMismatchError):
        await BaseVersion.ask(Changing(), VERSION)


@pytest.fixture(scope="module")
def base_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a version of `CSV` that can be started from, as far as the registry can tell."""
    directory = tmp_path_factory.mktemp("base")
    (directory / "data.csv").write_bytes(CSV)
    lineage, _ = described(tabular(), directory / "data.csv")
    (directory / "data.csv").unlink()
    (directory / "lineage.json").write_bytes(lineage)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 1]) for n in "xyz"]
    nodes = [helper.make_node("Add", ["x", "y"], ["z"])]
    graph = helper.make_graph(nodes, "g", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    tensors = [{"name": n, "datatype": "FP32", "shape": [-1, 1], "meaning": n} for n in "xyz"]
    told = {"task": "test", "inputs": tensors[:2], "outputs": tensors[2:]}
    (directory / "signature.json").write_text(json.dumps(told))
    one = np.ones((1, 1), np.float32)
    golden: dict[str, Any] = {"input:x": one, "input:y": one, "output:z": 2 * one}
    np.savez(directory / "golden.npz", tolerance=np.float64(1e-6), **golden)
    (directory / "weights.npz").write_bytes(b"weights")
    (directory / "preprocessing.json").write_bytes(b"graph")
    return directory


@asynccontextmanager
async def published(
    directory: Path, bundle: Path, registry: str, model: str
) -> AsyncIterator[tuple[Client, pb.TrainingJob]]:
    """A trainer whose first job published `bundle` as the production version of a model."""
    async with running_trainer(directory, scripted(bundle), registry) as client:
        job = await client.train(model, alias="production")
        ended = await client.end(job.name)
        assert ended.state == SUCCEEDED, ended.error
        yield client, ended


async def test_a_process_gets_the_version_that_an_alias_pointed_at(
    tmp_path: Path, base_bundle: Path, registry: str
) -> None:
    async with published(tmp_path, base_bundle, registry, "succeeds-base") as (client, made):
        asked = spec(made.spec.dataset, "starts-there")
        asked.base_version = f"{made.spec.publication.model}/aliases/production"
        job = await client.create(asked)
        assert job.spec.base_version == made.result.version
        assert (await client.end(job.name)).state == SUCCEEDED
        log = (tmp_path / "jobs" / "default" / job.name.rpartition("/")[2] / "job.log").read_text()
        assert log.splitlines()[-1] == "lineage.json preprocessing.json signature.json weights.npz"
        again = await client.create(job.spec)
        assert again.spec == job.spec


async def test_what_cannot_be_started_from_is_refused_at_once(
    tmp_path: Path, bundle: Path, registry: str
) -> None:
    async with published(tmp_path, bundle, registry, "succeeds-without") as (client, made):
        model = made.spec.publication.model
        reader = client.key(train=["*"], publish=["*"], read=["other"])
        for base, key, reason in (
            (made.result.version, client, "FIELD_INVALID"),  # It keeps no weights.
            (f"{model}/versions/99", client, "VERSION_NOT_FOUND"),
            (f"{model}/aliases/none", client, "ALIAS_NOT_FOUND"),
            ("tenants/acme/models/m/versions/1", client, "FIELD_INVALID"),
            ("production", client, "FIELD_INVALID"),
            (made.result.version, reader, "PERMISSION_DENIED"),
        ):
            asked = spec(made.spec.dataset, "succeeds")
            asked.base_version = base
            error = await failure(key.create(asked))
            assert error.reason == f"ERROR_REASON_{reason}", (base, error)


async def test_a_registry_that_is_away_is_told_from_a_version_that_is(
    tmp_path: Path, command: Sequence[str]
) -> None:
    async with running_trainer(tmp_path, command, NOWHERE) as client:
        dataset = await client.upload()
        asked = spec(dataset.name, "succeeds")
        asked.base_version = str(VERSION)
        error = await failure(client.create(asked))
        assert (error.code.name, error.reason) == (
            "UNAVAILABLE",
            "ERROR_REASON_DEPENDENCY_UNAVAILABLE",
        )


@pytest.mark.slow
async def test_a_version_that_is_gone_when_its_job_starts_fails_it(
    tmp_path: Path, base_bundle: Path
) -> None:
    place = tmp_path / "registry"
    place.mkdir()
    first = running_registry(place)
    address = await asyncio.to_thread(first.__enter__)
    try:
        async with published(tmp_path / "t", base_bundle, address, "succeeds") as (client, made):
            blocking = await client.train("hangs")
            asked = spec(made.spec.dataset, "starts")
            asked.base_version = made.result.version
            job = await client.create(asked)
            await asyncio.to_thread(first.__exit__, None, None, None)
            shutil.rmtree(place / "data")
            first = running_registry(place)
            await asyncio.to_thread(first.__enter__)
            await client.pid(blocking.name)
            await client.cancel(blocking.name)
            ended = await client.end(job.name)
            assert ended.state == FAILED
            assert ended.error.reason == reasons.ERROR_REASON_VERSION_NOT_FOUND
    finally:
        await asyncio.to_thread(first.__exit__, None, None, None)


def test_recommendation_has_no_base_version() -> None:
    asked = table("recommendation", user="u", item="i")
    asked.base_version = str(VERSION)
    with pytest.raises(FieldInvalidError) as refused:
        parse_spec(asked)
    assert refused.value.metadata["field"] == "training_job.spec.base_version"


def test_a_spec_keeps_its_base_version() -> None:
    asked = changed(baseVersion=str(VERSION))
    parsed = parse_spec(asked)
    assert parsed.base_version == VERSION
    assert parse_spec(parsed.to_proto()) == parsed
    assert replace(parsed, base_version=None).to_proto().base_version == ""
