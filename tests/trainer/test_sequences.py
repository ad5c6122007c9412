"""Sequences of numbers with a class each, from arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.data_errors import DatasetInvalidError, Problem
from servery_trainer.examples import load_examples
from servery_trainer.spec import parse_spec
from tests.trainer.job_process import SuccessiveJobs
from tests.trainer.specs import table

LABELS = np.array(["up", "down"] * 6)


def load(tmp_path: Path, **arrays: Any) -> Any:
    np.savez(tmp_path / "waves.npz", **({"labels": LABELS} | arrays))
    return load_examples(parse_spec(table("sequence_classification")), tmp_path / "waves.npz")


@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_numbers_become_float32_with_a_channel(tmp_path: Path, dtype: Any) -> None:
    waves = np.arange(12 * 5).reshape(12, 5).astype(dtype)
    (sequence,) = load(tmp_path, sequences=waves).inputs.values()
    assert (sequence.dtype, sequence.shape) == (np.float32, (12, 5, 1))
    assert np.array_equal(sequence[..., 0], waves)


@pytest.mark.parametrize(
    ("sequences", "problem"),
    [
        (np.zeros((12, 5, 2, 1)), Problem.WRONG_SHAPE),
        (np.zeros(12), Problem.WRONG_SHAPE),
        (np.full((12, 5), "x"), Problem.WRONG_DTYPE),
        (np.where(np.eye(12) > 0, np.nan, 1), Problem.NOT_A_NUMBER),
        (np.array([[1], [1, 2]] * 6, object), Problem.OBJECT_ARRAY),
    ],
)
def test_refuses(tmp_path: Path, sequences: Any, problem: Problem) -> None:
    with pytest.raises(DatasetInvalidError) as caught:
        load(tmp_path, sequences=sequences)
    assert caught.value.problem is problem
    assert caught.value.metadata["array"] == "sequences"


def test_refuses_to_divide_by_a_column() -> None:
    spec = table("sequence_classification")
    spec.split.CopyFrom(pb.Split(method=dataset_pb2.SPLIT_METHOD_GROUP, column="t"))
    with pytest.raises(FieldInvalidError) as caught:
        parse_spec(spec)
    assert caught.value.metadata["field"] == "training_job.spec.split.column"


def spec(family: str) -> pb.TrainingSpec:
    asked = table("sequence_classification", duplicates=pb.DUPLICATE_POLICY_DROP)
    getattr(asked, family).SetInParent()
    asked.training.max_epochs = 25
    return asked


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Handwritten digits, read line by line."""
    digits, path = load_digits(), tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, sequences=digits.images, labels=digits.target)
    return path


@pytest.fixture(scope="module")
def reference(lines: Path) -> float:
    """The accuracy of logistic regression on the same rows."""
    digits, split = load_digits(), load_examples(parse_spec(spec("dense")), lines).split
    model = LogisticRegression(max_iter=5000).fit(
        digits.data[split.train], digits.target[split.train]
    )
    return float(model.score(digits.data[split.test], digits.target[split.test]))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["recurrent", "convolutional"])
def test_digits_read_line_by_line_are_told_nearly_as_by_logistic_regression(
    jobs: SuccessiveJobs, lines: Path, reference: float, tmp_path: Path, family: str
) -> None:
    job = jobs.run(spec(family), lines, tmp_path / "out")
    assert job.exit == 0, job.lines[-1]
    assert job.result.metrics["accuracy"] >= reference - 0.03
    assert job.result.parity.max_relative_error < 1e-4
    assert job.result.parity.label_agreement == 1
