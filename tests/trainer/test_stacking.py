"""How much each network of an ensemble counts."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import json_format
from sklearn.datasets import load_digits

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.networks import Convolutional, Dense, Recurrent
from servery_trainer.spec import parse_spec
from servery_trainer.stacking import fit_weights, right_answers
from servery_trainer.targets import Classes
from tests.trainer.job_process import Run, SuccessiveJobs, run, start
from tests.trainer.specs import table, text

STACKED = pb.COMBINATION_STACKED


def sequences(**training: Any) -> pb.TrainingSpec:
    spec = table("sequence_classification")
    spec.training.CopyFrom(pb.Training(**training))
    return spec


def member(family: str) -> pb.Member:
    return json_format.ParseDict({family: {}}, pb.Member())


def test_finds_the_weights_that_the_truth_was_made_with() -> None:
    rng = np.random.default_rng(0)
    answers = [rng.normal(size=(200, 3)).astype(np.float32) for _ in range(4)]
    made = [0.5, 0.3, 0.2, 0.0]
    right = np.tensordot(made, np.stack(answers), axes=1)
    np.testing.assert_allclose(fit_weights(answers, right), made, atol=1e-4)


def test_who_only_spoils_the_answer_does_not_count() -> None:
    rng = np.random.default_rng(0)
    right = rng.normal(size=(300, 1))
    errors = rng.normal(size=right.shape)
    answers = [(right + size * errors).astype(np.float32) for size in (1, 2)]
    np.testing.assert_allclose(fit_weights(answers, right), [1, 0], atol=1e-6)


def test_networks_that_answer_alike_count_alike() -> None:
    answer = np.linspace(0, 1, 20, dtype=np.float32)[:, None]
    for right in (answer, answer + 1):
        np.testing.assert_allclose(
            fit_weights([answer] * 3, right.astype(np.float64)), 1 / 3, rtol=1e-6
        )


def test_the_right_answer_to_a_row_of_a_class_is_certain() -> None:
    target = Classes(values=np.array([2, 0, 1]), labels=("a", "b", "c"))
    assert right_answers(target, np.array([0, 1])).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_members_are_further_families_of_the_ensemble() -> None:
    members = [pb.Member(dense=pb.DenseFamily(hidden_units=[8])), member("convolutional")]
    spec = parse_spec(sequences(members=members, ensemble_size=2, combination=STACKED))
    kinds = [type(family) for family in spec.networks]
    assert kinds == [Recurrent, Dense, Convolutional] * 2
    assert parse_spec(spec.to_proto()) == spec


def dense(count: int) -> list[pb.Member]:
    return [member("dense")] * count


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        pytest.param(sequences(members=[member("embedding")]), "members[0].embedding", id="fit"),
        pytest.param(
            sequences(members=[pb.Member(dense=pb.DenseFamily(dropout=2))]),
            "members[0].dense.dropout",
            id="value",
        ),
        pytest.param(sequences(members=dense(20)), "members", id="members"),
        pytest.param(sequences(members=dense(4), ensemble_size=5), "members", id="networks"),
        pytest.param(sequences(combination=STACKED), "combination", id="nothing to combine"),
        pytest.param(sequences(combination=9), "combination", id="unknown"),
    ],
)
def test_ensembles_that_cannot_be_are_refused(spec: pb.TrainingSpec, field: str) -> None:
    with pytest.raises(FieldInvalidError) as caught:
        parse_spec(spec)
    assert caught.value.metadata["field"] == f"training_job.spec.training.{field}"


def test_networks_that_see_texts_differently_are_refused() -> None:
    spec = text({"dense": {}})
    spec.training.members.add().recurrent.SetInParent()
    with pytest.raises(FieldInvalidError) as caught:
        parse_spec(spec)
    assert caught.value.metadata["field"] == "training_job.spec.training.members[0]"


@pytest.mark.parametrize(
    ("task", "fields"),
    [("anomaly_detection", {}), ("recommendation", {"user": "u", "item": "i"})],
)
def test_what_has_no_right_answer_cannot_be_stacked(task: str, fields: dict[str, str]) -> None:
    spec = table(task, **fields)
    spec.training.CopyFrom(pb.Training(ensemble_size=2, combination=STACKED))
    with pytest.raises(FieldInvalidError) as caught:
        parse_spec(spec)
    assert caught.value.metadata["field"] == "training_job.spec.training.combination"


def digits(family: str, seed: int) -> pb.TrainingSpec:
    spec = sequences(max_epochs=4, seed=seed)
    spec.sequence_classification.duplicates = pb.DUPLICATE_POLICY_KEEP
    spec.split.seed = 1
    getattr(spec, family).SetInParent()
    return spec


def both() -> pb.TrainingSpec:
    spec = digits("dense", 5)
    spec.training.members.append(member("convolutional"))
    spec.training.combination = STACKED
    return spec


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images, path = load_digits(), tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, sequences=images.images, labels=images.target)
    return path


@pytest.fixture(scope="module")
def stacked(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(both(), data, tmp_path_factory.mktemp("job") / "stacked")


@pytest.mark.slow
def test_is_as_good_as_its_best_member(
    jobs: SuccessiveJobs, data: Path, stacked: Run, tmp_path: Path
) -> None:
    dense = jobs.run(digits("dense", 5), data, tmp_path / "dense")
    convolutional = jobs.run(digits("convolutional", 6), data, tmp_path / "convolutional")
    best = max(job.result.metrics["accuracy"] for job in (dense, convolutional))
    assert stacked.result.intervals["accuracy"].upper >= best
    networks = stacked.document("lineage.json")["networks"]
    weights = [network["weight"] for network in networks]
    assert [network["family"] for network in networks] == ["dense", "convolutional"]
    assert sum(weights) == pytest.approx(1, abs=1e-6)
    assert abs(weights[0] - weights[1]) > 0.01
    inputs = {"sequence": load_digits().images.astype(np.float32)}
    both, one, other = (
        ort.InferenceSession(job.out / "model.onnx").run(["probabilities"], inputs)[0]
        for job in (stacked, dense, convolutional)
    )
    np.testing.assert_allclose(both, weights[0] * one + weights[1] * other, atol=1e-5)


@pytest.mark.slow
def test_a_kill_changes_nothing(data: Path, stacked: Run, tmp_path: Path) -> None:
    store = ("--checkpoint-dir", tmp_path / "checkpoint")
    with start(both(), data, tmp_path / "killed", *store) as process:
        assert process.stdout is not None
        for line in process.stdout:
            progress = json.loads(line)["progress"]
            if progress.get("network") == 2 and progress.get("epoch", 0) > 0:
                break
        process.send_signal(signal.SIGKILL)
    killed = run(both(), data, tmp_path / "killed", *store)
    for name in ("model.onnx", "golden.npz", "lineage.json"):
        assert killed.sha256(name) == stacked.sha256(name)
