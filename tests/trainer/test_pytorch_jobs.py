"""Jobs that train with PyTorch, on real data, where there is no TensorFlow."""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from servery.registry.v1 import registry_pb2
from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.jobs import SUCCEEDED
from servery_trainer.local_executor import JOB_COMMAND
from tests.trainer.job_process import run, run_interrupted
from tests.trainer.service import registry_client, running_trainer, spec
from tests.trainer.specs import image, text
from tests.trainer.test_job import digits, directory  # noqa: F401  fixtures
from tests.trainer.test_main import breast_cancer
from tests.trainer.test_text_families import messages, rows  # noqa: F401  a fixture

pytest.importorskip("torch", reason="PyTorch is not in this environment, but in .venv-pytorch")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # PyTorch may take a minute to load


async def test_an_ensemble_ends_in_a_proven_version(tmp_path: Path, registry: str) -> None:
    async with running_trainer(tmp_path, JOB_COMMAND, registry) as client:
        dataset = await client.upload(breast_cancer())
        asked = spec(dataset.name, "torch", target="diagnosis")
        asked.framework = pb.FRAMEWORK_PYTORCH
        asked.training.CopyFrom(pb.Training(max_epochs=8, ensemble_size=2))
        job = await client.end((await client.create(asked)).name, within_s=240)
    assert job.state == SUCCEEDED, job.error
    assert job.result.metrics["accuracy"] > 0.93
    assert job.result.parity.max_relative_error <= 1e-4
    assert job.result.parity.label_agreement == 1
    files = {}
    async with registry_client(registry) as stub:
        for name in ("model.onnx", "lineage.json", "signature.json"):
            request = registry_pb2.ReadFileRequest(name=job.result.version, path=name)
            files[name] = b"".join([part.chunk async for part in stub.ReadFile(request)])
    lineage = json.loads(files["lineage.json"])
    assert lineage["spec"]["framework"] == "FRAMEWORK_PYTORCH"
    assert {"torch", "onnxscript"} <= set(lineage["libraries"])
    assert not {"tensorflow", "keras"} & set(lineage["libraries"])
    assert b"site-packages" not in files["model.onnx"]
    assert ort.InferenceSession(files["model.onnx"]).get_inputs()[0].shape == ["batch", 1]


def test_killed_or_stopped_it_goes_on_to_the_same_model_bit_for_bit(
    digits: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    asked = image()
    asked.framework = pb.FRAMEWORK_PYTORCH
    asked.training.max_epochs = 10
    asked.explanation.method = pb.EXPLANATION_METHOD_NONE
    whole = run(asked, digits, tmp_path / "whole")
    assert whole.exit == 0, whole.lines[-1]
    assert whole.result.metrics["accuracy"] >= 0.96
    resumed = run_interrupted(asked, digits, tmp_path / "out", tmp_path / "checkpoint")
    for name in ("model.onnx", "golden.npz", "metrics.json", "lineage.json", "weights.npz"):
        assert resumed.sha256(name) == whole.sha256(name)
    assert resumed.result.epochs == whole.result.epochs


def test_spam_is_told_from_messages(messages: Path, tmp_path: Path) -> None:  # noqa: F811
    """Almeida, Gómez Hidalgo and Yamakami (2011) reach an accuracy of 0.9764 with an SVM."""
    asked = text(duplicates=pb.DUPLICATE_POLICY_DROP)
    asked.framework = pb.FRAMEWORK_PYTORCH
    asked.training.max_epochs = 6
    job = run(asked, messages, tmp_path / "out")
    assert job.exit == 0, job.lines[-1]
    assert job.result.metrics["accuracy"] >= 0.9764
    assert job.result.parity.max_relative_error <= 1e-4
    session = ort.InferenceSession(job.out / "model.onnx")
    prize = rows("URGENT! You have won a FREE prize, call now to claim", "ok see you at home")
    assert np.ravel(session.run(["label"], prize)[0]).tolist() == ["spam", "ham"]
