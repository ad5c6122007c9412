"""Anomalies: figures are scikit-learn's, the threshold keeps its promise, real ones are found."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from sklearn import metrics
from sklearn.datasets import load_digits
from sklearn.ensemble import IsolationForest

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.anomalies import Anomalies
from servery_trainer.data_errors import DatasetInvalidError, Problem
from servery_trainer.examples import load_examples
from servery_trainer.networks import Autoencoder
from servery_trainer.spec import parse_spec
from servery_trainer.split import split_rows
from tests.trainer.job_process import Run, SuccessiveJobs
from tests.trainer.specs import table

NORMAL = 8
"""The digit that is normal; the nine others are anomalies, as in Ruff et al. (2018)."""


def scores(rng: np.random.Generator, rows: int) -> NDArray[np.float32]:
    """Those of normal rows."""
    return rng.gamma(2, size=(rows, 1)).astype(np.float32)


def scored(rows: int = 400) -> tuple[Anomalies, dict[str, Any], Any]:
    """A head with a threshold, outputs and the truth."""
    rng = np.random.default_rng(3)
    truth = (rng.random(rows) < 0.2).astype(np.int64)
    said = rng.gamma(2 + 6 * truth)[:, None].astype(np.float32)
    head = Anomalies(0.05, labelled=True).calibrated(scores(rng, 99))
    return head, head.decode(said), truth


def test_agrees_with_scikit_learn() -> None:
    head, said, truth = scored()
    found = head.evaluate(said, truth).result
    called, score = said["is_anomaly"][:, 0], said["score"][:, 0]
    for name in ("precision", "recall", "f1"):
        assert found.metrics[name] == pytest.approx(
            getattr(metrics, f"{name}_score")(truth, called)
        )
    assert found.metrics["roc_auc"] == pytest.approx(metrics.roc_auc_score(truth, score))
    assert found.metrics["pr_auc"] == pytest.approx(metrics.average_precision_score(truth, score))
    balanced = metrics.balanced_accuracy_score(truth, called)
    assert found.metrics["balanced_accuracy"] == pytest.approx(balanced)
    assert head.row_scores(said, truth).mean() == pytest.approx(balanced)
    assert found.metrics["false_alarm_rate"] == pytest.approx(called[truth == 0].mean())
    for name in ("false_alarm_rate", "recall", "roc_auc"):
        assert found.intervals[name].lower < found.metrics[name] < found.intervals[name].upper


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("known", [99, 500])
def test_over_many_calibrations_normal_rows_raise_the_declared_share_of_alarms(
    rate: float, known: int
) -> None:
    rng = np.random.default_rng(4)
    shares = []
    for _ in range(1000):
        head = Anomalies(rate, labelled=False).calibrated(scores(rng, known))
        shares.append(head.decode(scores(rng, 500))["is_anomaly"].mean())
    error = np.std(shares) / len(shares) ** 0.5
    assert abs(np.mean(shares) - head.expected_rate) < 4 * error
    assert rate - 1 / (known + 1) < head.expected_rate <= rate + 1e-12


def test_few_rows_promise_no_more_than_they_can() -> None:
    head = Anomalies(0.01, labelled=False).calibrated(np.arange(1, 10, dtype=np.float32)[:, None])
    assert head.expected_rate == pytest.approx(0.1)
    assert not head.decode(np.array([[9]], np.float32))["is_anomaly"].any()
    assert head.decode(np.array([[9.1], [np.nan], [np.inf]], np.float32))["is_anomaly"].all()


def test_without_anomalies_there_are_only_false_alarms() -> None:
    head, said, truth = scored()
    found = head.evaluate(said, np.zeros_like(truth)).result
    assert "roc_auc" not in found.metrics
    right = 1 - found.metrics["false_alarm_rate"]
    assert found.metrics["balanced_accuracy"] == pytest.approx(right)
    of_anomalies = head.metrics(said, np.ones_like(truth))
    assert not {"false_alarm_rate", "roc_auc"} & of_anomalies.keys()


ROWS = "a,b,kind\n" + "".join(f"{i},{i % 3},{'ok' if i % 5 else 'bad'}\n" for i in range(40))


def load(file: Path, content: str, **task: Any) -> Any:
    file.write_text(content)
    return load_examples(parse_spec(table("anomaly_detection", **task)), file)


def test_anomalies_are_in_the_test_part_only(tmp_path: Path) -> None:
    examples = load(tmp_path / "rows.csv", ROWS, label="kind", normal="ok")
    split, truth = examples.split, examples.target.values
    assert truth.sum() == 8
    assert not truth[split.train].any()
    assert not truth[split.validation].any()
    assert truth[split.test].sum() == 8
    rows = np.concatenate([split.train, split.validation, split.test])
    assert sorted(rows) == list(range(40))
    assert list(examples.inputs) == ["a", "b"]


def test_without_a_label_all_rows_are_normal(tmp_path: Path) -> None:
    examples = load(tmp_path / "rows.csv", ROWS, features=["a"])
    assert not examples.target.values.any()
    assert len(examples.split.test) == 6


@pytest.mark.parametrize(
    ("content", "task", "problem", "column"),
    [
        (ROWS, {"label": "kind", "normal": "fine"}, Problem.TOO_FEW_ROWS, "kind"),
        (ROWS, {"label": "sort", "normal": "ok"}, Problem.MISSING_COLUMN, "sort"),
        (ROWS + "1,2,\n", {"label": "kind", "normal": "ok"}, Problem.MISSING_VALUE, "kind"),
        (ROWS, {"label": "b", "normal": "0", "features": ["c"]}, Problem.MISSING_COLUMN, "c"),
        ("a,score\n1,2\n", {}, Problem.DUPLICATE_COLUMN, "score"),
        (
            "a,kind\n" + "1,ok\n" * 9 + "2,bad\n",
            {"label": "kind", "normal": "ok", "duplicates": pb.DUPLICATE_POLICY_KEEP},
            Problem.CONSTANT_FEATURES,
            "a",
        ),
        ("a\n1\n2\n", {}, Problem.TOO_FEW_ROWS, None),
    ],
)
def test_refuses_what_teaches_nothing(
    tmp_path: Path, content: str, task: dict[str, Any], problem: Problem, column: str | None
) -> None:
    with pytest.raises(DatasetInvalidError) as refused:
        load(tmp_path / "rows.csv", content, **task)
    assert refused.value.metadata["problem"] == problem
    assert refused.value.metadata.get("column") == column


@pytest.mark.parametrize(
    ("field", "task", "rest"),
    [
        ("anomaly_detection.normal", {"label": "kind"}, pb.TrainingSpec()),
        ("anomaly_detection.normal", {"normal": "ok"}, pb.TrainingSpec()),
        ("anomaly_detection.false_alarm_rate", {"false_alarm_rate": 0}, pb.TrainingSpec()),
        ("anomaly_detection.false_alarm_rate", {"false_alarm_rate": 0.6}, pb.TrainingSpec()),
        (
            "anomaly_detection.features[0]",
            {"label": "kind", "normal": "ok", "features": ["kind"]},
            pb.TrainingSpec(),
        ),
        ("dense", {}, pb.TrainingSpec(dense=pb.DenseFamily())),
        (
            "autoencoder.code_units",
            {},
            pb.TrainingSpec(autoencoder=pb.AutoencoderFamily(code_units=1025)),
        ),
        (
            "autoencoder.hidden_units[0]",
            {},
            pb.TrainingSpec(autoencoder=pb.AutoencoderFamily(hidden_units=[0])),
        ),
        (
            "training.class_weights",
            {},
            pb.TrainingSpec(training=pb.Training(class_weights=pb.CLASS_WEIGHTS_BALANCED)),
        ),
    ],
)
def test_names_the_field_that_is_wrong(
    field: str, task: dict[str, Any], rest: pb.TrainingSpec
) -> None:
    spec = table("anomaly_detection", **task)
    spec.MergeFrom(rest)
    with pytest.raises(FieldInvalidError) as refused:
        parse_spec(spec)
    assert refused.value.metadata["field"] == f"training_job.spec.{field}"


def test_survives_its_own_rendering() -> None:
    message = table("anomaly_detection", label="kind", normal="ok", false_alarm_rate=0.02)
    spec = parse_spec(message)
    assert spec.family == Autoencoder(hidden_units=(64, 32), code_units=8, dropout=0.1)
    assert parse_spec(spec.to_proto()) == spec
    tabular = table("tabular_classification", target="kind")
    tabular.autoencoder.SetInParent()
    with pytest.raises(FieldInvalidError):
        parse_spec(tabular)


@pytest.fixture(scope="module")
def job(jobs: SuccessiveJobs, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Which images of digits are not of an eight."""
    directory = tmp_path_factory.mktemp("digits")
    data = load_digits()
    with (directory / "digits.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*data.feature_names, "digit"])
        writer.writerows(np.column_stack([data.data, data.target]).astype(int).tolist())
    spec = table("anomaly_detection", label="digit", normal=str(NORMAL), false_alarm_rate=0.04)
    spec.training.max_epochs = 200
    return jobs.run(spec, directory / "digits.csv", directory / "out")


@pytest.mark.slow
class TestDigits:
    def test_are_told_apart_better_than_by_an_isolation_forest(self, job: Run) -> None:
        assert job.exit == 0, job.lines[-1]
        data = load_digits()
        normal, anomalous = (np.flatnonzero((data.target == NORMAL) == is_so) for is_so in (1, 0))
        split = split_rows(
            np.zeros(len(normal), np.int64), validation_fraction=0.15, test_fraction=0.15, seed=0
        )
        forest = IsolationForest(random_state=0).fit(data.data[normal[split.train]])
        test = np.concatenate([normal[split.test], anomalous])
        truth = data.target[test] != NORMAL
        reference = metrics.roc_auc_score(truth, -forest.score_samples(data.data[test]))
        assert job.result.rows.test == len(test)
        assert job.result.metrics["roc_auc"] >= reference

    def test_says_what_it_learned(self, job: Run) -> None:
        result = job.result
        assert result.score == "balanced_accuracy"
        assert not result.labels
        assert result.parity.max_relative_error < 1e-5
        assert result.parity.label_agreement == 1
        ends = result.intervals["false_alarm_rate"]
        assert ends.lower <= result.metrics["expected_false_alarm_rate"] <= ends.upper
        assert (job.out / "scores.png").exists()
        assert job.document("metrics.json")["threshold"] == result.metrics["threshold"]

    def test_the_graph_has_the_threshold_in_it(self, job: Run) -> None:
        session = ort.InferenceSession(job.out / "model.onnx")
        assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
            ("score", "tensor(float)", ["batch", 1]),
            ("is_anomaly", "tensor(bool)", ["batch", 1]),
        ]
        golden = np.load(job.out / "golden.npz", allow_pickle=False)
        assert golden["output:is_anomaly"].any()
        assert not golden["output:is_anomaly"].all()
        data = load_digits()
        inputs: dict[str, Any] = {
            name: column[:, None].astype(np.float32)
            for name, column in zip(data.feature_names, data.data.T, strict=True)
        }
        inputs["pixel_0_0"] = np.full_like(inputs["pixel_0_0"], np.nan)
        score, is_anomaly = session.run(["score", "is_anomaly"], inputs)
        assert np.isnan(score).all()
        assert is_anomaly.all()
