"""Sets of labels: figures are scikit-learn's, and real digits are told what they are."""

import csv
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from sklearn import metrics
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.examples import load_examples
from servery_trainer.multi_label import MultiLabel
from servery_trainer.slices import MOST_VALUES, by_slice
from servery_trainer.spec import parse_spec
from servery_trainer.split import split_rows
from tests.trainer.job_process import Run, SuccessiveJobs
from tests.trainer.specs import table

HEAD = MultiLabel(("a", "b", "never"))
PROPERTIES = {
    "even": (0, 2, 4, 6, 8),
    "prime": (2, 3, 5, 7),
    "closed": (0, 6, 8, 9),
    "zero": (0,),
}
"""What digits are."""


def outputs(rows: int = 400) -> tuple[dict[str, Any], Any]:
    rng = np.random.default_rng(2)
    truth = (rng.random((rows, 3)) < [0.5, 0.2, 0.0]).astype(np.uint8)
    noise = rng.normal(0, 0.35, truth.shape)
    probabilities = np.clip(0.5 + (truth - 0.5) * 0.6 + noise, 0.01, 0.99).astype(np.float32)
    return HEAD.decode(probabilities), truth


def test_agrees_with_scikit_learn() -> None:
    said, truth = outputs()
    found = HEAD.evaluate(said, truth)
    got, predicted = found.result.metrics, said["predicted"]
    assert got["subset_accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    for average in ("micro", "macro"):
        for name in ("precision", "recall", "f1"):
            figure = getattr(metrics, f"{name}_score")
            expected = figure(truth, predicted, average=average, zero_division=0)
            assert got[f"{average}_{name}"] == pytest.approx(expected)
    expected = metrics.f1_score(truth, predicted, average="samples", zero_division=1)
    assert got["sample_f1"] == pytest.approx(expected)
    areas = [
        score(truth[:, code], said["probabilities"][:, code])
        for score in (metrics.roc_auc_score, metrics.average_precision_score)
        for code in (0, 1)
    ]
    assert got["roc_auc"] == pytest.approx(np.mean(areas[:2]))
    assert got["pr_auc"] == pytest.approx(np.mean(areas[2:]))
    losses = [
        metrics.log_loss(truth[:, code], said["probabilities"][:, code], labels=[0, 1])
        for code in range(3)
    ]
    assert got["log_loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    never = found.result.label_metrics[2]
    assert (never.label, never.support, never.HasField("roc_auc")) == ("never", 0, False)
    for name, ends in found.result.intervals.items():
        assert ends.lower < got[name] < ends.upper


def test_slices_are_judged_alone() -> None:
    said, truth = outputs(100)
    texts = np.array([f"v{row % 3}" for row in range(99)] + [""], np.object_)
    found = by_slice(HEAD, said, truth, {"ward": texts})
    assert [(part.value, part.row_count) for part in found] == [
        ("v0", 33),
        ("v1", 33),
        ("v2", 33),
        ("", 1),
    ]
    second = {name: values[1:99:3] for name, values in said.items()}
    assert dict(found[1].metrics) == HEAD.metrics(second, truth[1:99:3])
    many = by_slice(HEAD, said, truth, {"id": np.array(list(map(str, range(100))), np.object_)})
    assert len(many) == MOST_VALUES


@pytest.fixture(scope="module")
def job(jobs: SuccessiveJobs, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Properties of real handwritten digits from their 64 pixels."""
    directory = tmp_path_factory.mktemp("digits")
    data = load_digits()
    with (directory / "digits.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"p{pixel}" for pixel in range(64)), "properties"])
        for pixels, digit in zip(data.data, data.target, strict=True):
            named = [name for name, digits in PROPERTIES.items() if digit in digits]
            writer.writerow([*map(int, pixels), ";".join(named) or ";"])
    spec = table("tabular_multi_label", targets=["properties"], separator=";")
    spec.training.max_epochs = 15
    spec.training.class_weights = pb.CLASS_WEIGHTS_BALANCED
    return jobs.run(spec, directory / "digits.csv", directory / "out")


@pytest.mark.slow
class TestDigits:
    def test_are_told_better_than_by_logistic_regression(self, job: Run) -> None:
        assert job.exit == 0, job.lines[-1]
        spec = parse_spec(table("tabular_multi_label", targets=["properties"], separator=";"))
        examples = load_examples(spec, job.out.with_name("digits.csv"))
        split = split_rows(
            examples.target.strata_B, validation_fraction=0.15, test_fraction=0.15, seed=0
        )
        pixels = np.concatenate(list(examples.inputs.values()), axis=1) / 16
        truth = examples.target.values
        model = OneVsRestClassifier(LogisticRegression(max_iter=300))
        model.fit(pixels[split.train], truth[split.train])
        predicted = model.predict(pixels[split.test])
        reference = metrics.f1_score(truth[split.test], predicted, average="micro")
        assert job.result.metrics["micro_f1"] > reference > 0.85

    def test_says_what_it_learned(self, job: Run) -> None:
        result = job.result
        assert result.score == "sample_f1"
        assert list(result.labels) == sorted(PROPERTIES)
        assert [figures.label for figures in result.label_metrics] == list(result.labels)
        assert min(figures.f1 for figures in result.label_metrics) > 0.9
        assert result.parity.max_relative_error < 1e-5
        assert result.parity.label_agreement == 1
        assert "val_subset_accuracy" in result.epochs[-1].metrics
        assert (job.out / "roc.png").exists()
        assert len(job.document("metrics.json")["classes"]) == 4

    def test_the_graph_answers_for_each_label(self, job: Run) -> None:
        session = ort.InferenceSession(job.out / "model.onnx")
        assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
            ("probabilities", "tensor(float)", ["batch", 4]),
            ("predicted", "tensor(bool)", ["batch", 4]),
        ]
        with np.load(job.out / "golden.npz", allow_pickle=False) as golden:
            inputs = {i.name: golden[f"input:{i.name}"] for i in session.get_inputs()}
            probabilities, predicted = session.run(None, inputs)
            np.testing.assert_array_equal(predicted, golden["output:predicted"])
            np.testing.assert_array_equal(predicted, probabilities >= 0.5)
            assert predicted.any(axis=0).all()  # golden rows show every label
