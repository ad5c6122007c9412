"""Going on from a published version: the same features, the same answers, then better ones."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes, load_digits

from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.clipping import Clip
from servery_trainer.fitting import fit_columns, fit_text
from servery_trainer.imputation import Imputation
from servery_trainer.networks import Dense, Embedding
from servery_trainer.numbering import Numbering
from servery_trainer.preprocessing import ArrayPreprocessing, Preprocessing
from servery_trainer.preprocessing_file import NotPreprocessingError, dump, load
from servery_trainer.spec import parse_spec
from servery_trainer.tasks import Fill, TextTask
from tests.trainer.job_process import Run, SuccessiveJobs
from tests.trainer.specs import image, table, text

Train = Callable[..., Run]

BASE = "tenants/default/models/m/versions/1"

WARDS = {
    "dose": np.array([[1.5], [np.nan], [-3e4], [0.1]], np.float32),
    "ward": np.array([["north"], ["south"], ["north"], [""]], np.object_),
    "smoker": np.array([["true"], ["false"], [""], ["TRUE"]], np.object_),
    "born": np.array([["1990-01-31"], [""], ["2024-02-29 12:00:01"], ["1969-12-31"]], np.object_),
}
TEXTS = {"sms": np.array([["free prize now!"], ["see you now"], ["free\tnow"], [""]], np.object_)}
PIXELS = {"image": np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)}


def wards() -> Preprocessing:
    kinds = (
        dataset_pb2.COLUMN_TYPE_NUMERIC,
        dataset_pb2.COLUMN_TYPE_TEXT,
        dataset_pb2.COLUMN_TYPE_BOOLEAN,
        dataset_pb2.COLUMN_TYPE_DATE,
    )
    imputation = Imputation.of(pb.MISSING_POLICY_IMPUTE_MODE, Fill())
    clip = {"dose": Clip(lower=-1)}
    return fit_columns(dict(zip(WARDS, kinds, strict=True)), WARDS, imputation, clip)


def words(family: Dense | Embedding) -> Preprocessing:
    task = parse_spec(text()).task
    assert isinstance(task, TextTask)
    return fit_text(task, family, TEXTS)


@pytest.mark.parametrize(
    ("fitted", "rows"),
    [
        pytest.param(wards(), WARDS, id="columns"),
        pytest.param(words(Dense(hidden_units=(), dropout=0)), TEXTS, id="bags of words"),
        pytest.param(words(Embedding(dimension=1, hidden_units=(), dropout=0)), TEXTS, id="words"),
        pytest.param(
            ArrayPreprocessing.fit("image", PIXELS["image"], by_channel=False), PIXELS, id="images"
        ),
        pytest.param(
            ArrayPreprocessing.fit("image", PIXELS["image"], by_channel=True), PIXELS, id="channels"
        ),
        pytest.param(Numbering.fit("ward", WARDS["ward"][:, 0].astype(object)), WARDS, id="users"),
    ],
)
def test_preprocessing_that_was_kept_does_the_same_to_the_last_bit(
    fitted: Preprocessing, rows: Mapping[str, NDArray[Any]]
) -> None:
    again = load(dump(fitted))
    np.testing.assert_array_equal(again.apply(rows), fitted.apply(rows))
    ours, theirs = (one.to_onnx("features", "p/") for one in (again, fitted))
    assert ours.inputs == theirs.inputs
    assert ours.nodes == theirs.nodes
    assert ours.initializers == theirs.initializers
    assert dump(again) == dump(fitted)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\xff", id="no text"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b"3", id="a number"),
        pytest.param(b'{"class": "Popen", "fields": {"args": "true"}}', id="another class"),
        pytest.param(b'{"class": "Numbering", "fields": {}}', id="nothing in it"),
        pytest.param(b'{"class": "Tokenizer", "fields": {}}', id="a part only"),
        pytest.param(b'{"array": "AAAA", "dtype": "<f4", "shape": [9]}', id="other shape"),
        pytest.param(b'{"array": "AAAA", "dtype": "O", "shape": [1]}', id="objects"),
    ],
)
def test_what_is_no_preprocessing_is_refused(content: bytes) -> None:
    with pytest.raises(NotPreprocessingError):
        load(content)


@pytest.fixture
def train(jobs: SuccessiveJobs) -> Train:
    """Runs a job that starts from the version of another job, if one is given."""

    def run(spec: pb.TrainingSpec, dataset: Path, out: Path, base: Run | None = None) -> Run:
        spec.base_version = BASE if base else ""
        return jobs.run(spec, dataset, out, base.out if base else None)

    return run


def digits(path: Path, rows: NDArray[Any]) -> Path:
    known = load_digits()
    np.savez_compressed(path, images=known.images[rows].astype(np.uint8), labels=known.target[rows])
    return path


def small(max_epochs: int) -> pb.TrainingSpec:
    asked = image()
    asked.dense.hidden_units.append(32)
    asked.training.max_epochs = max_epochs
    return asked


@pytest.mark.slow
def test_what_was_learned_is_not_learned_again(train: Train, tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(1797)
    first, second = digits(tmp_path / "1.npz", order[:900]), digits(tmp_path / "2.npz", order[900:])
    wider = small(2)
    wider.dense.hidden_units[:] = [64]
    scratch = train(small(2), second, tmp_path / "scratch")
    base = train(small(20), first, tmp_path / "base")
    on = train(small(2), second, tmp_path / "on", base)
    refused = train(wider, second, tmp_path / "wider", base)
    assert on.result.metrics["accuracy"] > scratch.result.metrics["accuracy"] + 0.1
    field = refused.lines[-1]["error"]["metadata"]["field"]
    assert field == "training_job.spec.dense.hidden_units"
    assert on.document("lineage.json")["base_version"] == {
        "name": BASE,
        "weights_sha256": base.result.weights_sha256,
        "new_last_layer": False,
    }


@pytest.mark.slow
def test_of_other_labels_the_last_layer_starts_anew(train: Train, tmp_path: Path) -> None:
    target = load_digits().target
    still = small(1)
    still.training.learning_rate = 1e-9
    base = train(small(3), digits(tmp_path / "1.npz", target != 9), tmp_path / "base")
    on = train(still, digits(tmp_path / "2.npz", target > 0), tmp_path / "on", base)
    more = train(still, digits(tmp_path / "3.npz", target >= 0), tmp_path / "more", base)
    learned, *after = (np.load(job.out / "weights.npz") for job in (base, on, more))
    for job, weights in zip((on, more), after, strict=True):
        for place in ("0/0", "0/1"):
            np.testing.assert_allclose(weights[place], learned[place], atol=1e-6)
        assert job.document("lineage.json")["base_version"]["new_last_layer"]
    assert np.abs(after[0]["0/2"] - learned["0/2"]).max() > 0.1
    assert after[1]["0/2"].shape == (32, 10)


@pytest.mark.slow
def test_answers_are_those_of_the_base_version_until_something_is_learned(
    train: Train, tmp_path: Path
) -> None:
    known = load_diabetes()
    for name, rows in (("low", known.target < 150), ("high", known.target >= 150)):
        lines = np.column_stack([known.data, known.target])[rows]
        header = ",".join([*known.feature_names, "progress"])
        np.savetxt(tmp_path / f"{name}.csv", lines, delimiter=",", header=header, comments="")
    asked = table("tabular_regression", target="progress")
    asked.training.MergeFrom(pb.Training(max_epochs=5, ensemble_size=2))
    still = pb.TrainingSpec()
    still.CopyFrom(asked)
    still.training.MergeFrom(pb.Training(max_epochs=1, learning_rate=1e-9))
    base = train(asked, tmp_path / "low.csv", tmp_path / "base")
    on = train(still, tmp_path / "high.csv", tmp_path / "on", base)
    rows = {
        name: known.data[:50, place, None].astype(np.float32)
        for place, name in enumerate(known.feature_names)
    }
    before, after = (
        ort.InferenceSession(job.out / "model.onnx").run(["value"], rows)[0] for job in (base, on)
    )
    np.testing.assert_allclose(after, before, rtol=1e-4)
