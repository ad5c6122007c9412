"""Numbers: figures are scikit-learn's, and real ones are predicted as well as by a linear model."""

import csv
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from sklearn import metrics
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.regression import Regression
from servery_trainer.split import split_rows
from tests.trainer.job_process import Run, SuccessiveJobs
from tests.trainer.specs import table

REFERENCE_R2 = 0.399
"""Of least squares on the same rows."""

HEAD = Regression("y", variance=4.0)


def test_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(50, 9, (300, 1)).astype(np.float32)
    predicted = truth + rng.normal(1, 4, truth.shape).astype(np.float32)
    found = HEAD.evaluate({"value": predicted}, truth).result
    assert found.metrics["mae"] == pytest.approx(metrics.mean_absolute_error(truth, predicted))
    assert found.metrics["mse"] == pytest.approx(metrics.mean_squared_error(truth, predicted))
    assert found.metrics["rmse"] == pytest.approx(found.metrics["mse"] ** 0.5)
    assert found.metrics["r2"] == pytest.approx(metrics.r2_score(truth, predicted))
    scores = HEAD.row_scores({"value": predicted}, truth)
    assert scores.mean() == pytest.approx(found.metrics["r2"])
    for name in ("mae", "rmse", "r2"):
        assert found.intervals[name].lower < found.metrics[name] < found.intervals[name].upper


def test_rows_that_are_all_alike_have_no_r2_but_a_score() -> None:
    truth, predicted = np.full((3, 1), 7, np.float32), np.full((3, 1), 8, np.float32)
    found = HEAD.evaluate({"value": predicted}, truth).result
    assert "r2" not in found.metrics
    assert HEAD.row_scores({"value": predicted}, truth).mean() == 1 - 1 / 4


@pytest.fixture(scope="module")
def job(jobs: SuccessiveJobs, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Progression of diabetes (Efron et al., 2004) from ten columns."""
    directory = tmp_path_factory.mktemp("diabetes")
    data = load_diabetes(scaled=False)
    with (directory / "diabetes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*data.feature_names, "progression"])
        writer.writerows(np.column_stack([data.data, data.target]).tolist())
    spec = table("tabular_regression", target="progression", slice_columns=["sex"])
    spec.training.max_epochs = 100
    spec.optimization.objective = pb.OBJECTIVE_SIZE
    return jobs.run(spec, directory / "diabetes.csv", directory / "out")


@pytest.mark.slow
class TestDiabetes:
    def test_is_predicted_as_well_as_by_least_squares(self, job: Run) -> None:
        assert job.exit == 0, job.lines[-1]
        data = load_diabetes(scaled=False)
        split = split_rows(
            np.zeros(len(data.target), np.int64),
            validation_fraction=0.15,
            test_fraction=0.15,
            seed=0,
        )
        linear = LinearRegression().fit(data.data[split.train], data.target[split.train])
        reference = linear.score(data.data[split.test], data.target[split.test])
        assert reference == pytest.approx(REFERENCE_R2, abs=0.01)
        interval = job.result.intervals["r2"]
        assert interval.lower < reference < interval.upper
        assert job.result.metrics["r2"] >= reference

    def test_says_what_it_learned(self, job: Run) -> None:
        result = job.result
        assert result.score == "r2"
        assert not result.labels
        assert not result.confusion_matrix
        assert result.parity.max_relative_error < 1e-5
        assert result.parity.label_agreement == 1
        assert result.epochs[-1].metrics["val_mae"] < result.epochs[0].metrics["val_mae"]
        assert result.importances[0].input in ("bmi", "s5")
        assert sum(part.row_count for part in result.slices) == result.rows.test
        assert {part.column for part in result.slices} == {"sex"}
        (chosen,) = (variant for variant in result.variants if variant.chosen)
        assert chosen.accuracy == pytest.approx(result.metrics["r2"])
        assert job.document("metrics.json")["slices"][0]["rmse"] > 0
        assert job.document("statistics.json")["target"]["minimum"] == 25
        assert (job.out / "residuals.png").exists()

    def test_the_graph_answers_in_the_unit_of_the_column(self, job: Run) -> None:
        session = ort.InferenceSession(job.out / "model.onnx")
        (value,) = session.get_outputs()
        assert (value.name, value.type, value.shape) == ("value", "tensor(float)", ["batch", 1])
        assert job.document("signature.json")["outputs"] == [
            {
                "name": "value",
                "datatype": "FP32",
                "shape": [-1, 1],
                "meaning": "column `progression`",
            }
        ]
        data = load_diabetes(scaled=False)
        inputs: dict[str, Any] = {
            name: column[:, None].astype(np.float32)
            for name, column in zip(data.feature_names, data.data.T, strict=True)
        }
        (values,) = session.run(["value"], inputs)
        assert metrics.r2_score(data.target, values) > 0.45
        golden = np.load(job.out / "golden.npz", allow_pickle=False)
        assert golden["output:value"].shape[1:] == (1,)
