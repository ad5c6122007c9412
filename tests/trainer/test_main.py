"""The trainer as it is run: real data, real training, a real registry."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

from servery.registry.v1 import registry_pb2
from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.jobs import SUCCEEDED
from servery_trainer.local_executor import JOB_COMMAND
from tests.trainer.service import registry_client, running_trainer, spec
from tests.trainer.test_job import FILES


def breast_cancer() -> bytes:
    """The table as a CSV file: 30 measures of a tumour, and what it was."""
    table = load_breast_cancer()
    lines = [",".join([*table.feature_names, "diagnosis"])]
    for row, target in zip(table.data, table.target_names[table.target], strict=True):
        lines.append(",".join([*map(repr, row.tolist()), target]))
    return "\n".join(lines).encode()


@pytest.mark.slow
async def test_a_real_job_ends_in_a_proven_version(tmp_path: Path, registry: str) -> None:
    async with running_trainer(tmp_path, JOB_COMMAND, registry) as client:
        dataset = await client.upload(breast_cancer(), display_name="breast-cancer.csv")
        asked = spec(dataset.name, "tumours", target="diagnosis", alias="production")
        asked.training.CopyFrom(pb.Training(max_epochs=8, seed=1))
        events = await client.events((await client.create(asked)).name, within_s=110)
    job = events[-1].training_job
    assert job.state == SUCCEEDED, job.error
    assert dataset.row_count == job.result.rows.total == 569
    assert job.result.metrics["accuracy"] > 0.9
    assert np.sum(job.result.confusion_matrix) == job.result.rows.test
    assert 0 <= job.result.parity.max_relative_error <= job.result.parity.tolerance
    phases = [event.progress.phase for event in events if event.HasField("progress")]
    assert phases == sorted(phases)
    assert {pb.PHASE_PREPARING, pb.PHASE_TRAINING, pb.PHASE_CONVERTING} <= set(phases)
    async with registry_client(registry) as stub:
        alias = "tenants/default/models/tumours/aliases/production"
        got = await stub.GetAlias(registry_pb2.GetAliasRequest(name=alias))
        assert got.alias.version == job.result.version
        version = await stub.GetVersion(registry_pb2.GetVersionRequest(name=job.result.version))
    assert {file.path for file in version.version.files} == FILES


@pytest.mark.slow
@pytest.mark.timeout(300)  # It starts TensorFlow three times.
async def test_a_real_job_whose_process_is_killed_trains_the_same_weights(
    tmp_path: Path,
) -> None:
    async with running_trainer(tmp_path, JOB_COMMAND) as client:
        dataset = await client.upload(breast_cancer())
        asked = spec(dataset.name, "tumours", target="diagnosis")
        asked.training.CopyFrom(pb.Training(max_epochs=40, early_stopping_patience=40))
        terms = {"without_publication": True}
        killed = await client.create(asked, terms=terms)
        async for event in client.watch(killed.name):
            if event.progress.epoch:
                break
        os.kill(child_of(child_of(os.getpid())), signal.SIGKILL)
        ended = await client.end(killed.name, within_s=120)
        whole = await client.end((await client.create(asked, terms=terms)).name, within_s=120)
    assert (ended.state, ended.attempt) == (SUCCEEDED, 2), ended.error
    assert (whole.state, whole.attempt) == (SUCCEEDED, 1), whole.error
    assert len(ended.result.weights_sha256) == 64
    assert ended.result.weights_sha256 == whole.result.weights_sha256


def child_of(pid: int) -> int:
    """The newest process that a process started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[-1])


def test_help_names_every_option_and_its_unit() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "servery_trainer", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for option in ("--data-dir", "--registry", "--parallel-jobs", "--cores", "--memory-bytes"):
        assert option in shown.stdout


def test_a_directory_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "servery_trainer", "--registry", "localhost:1"),
            *("--data-dir", str(tmp_path / "file" / "d")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
