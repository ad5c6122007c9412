"""The process of a job, as the service runs it, on real data."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf import json_format
from sklearn.datasets import load_breast_cancer, load_digits

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.examples import load_examples
from servery_trainer.spec import parse_spec
from servery_trainer.split import split_rows
from tests.trainer.job_process import Run, SuccessiveJobs, run, run_interrupted, start
from tests.trainer.specs import image, tabular

FILES = {
    "explain.onnx",
    "golden.npz",
    "lineage.json",
    "metrics.json",
    "model.onnx",
    "preprocessing.json",
    "profile.json",
    "signature.json",
    "statistics.json",
    "weights.npz",
    "calibration.png",
    "confusion.png",
    "curves.png",
    "roc.png",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def breast_cancer(directory: Path) -> Path:
    data = load_breast_cancer()
    path = directory / "breast_cancer.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*data.feature_names, "diagnosis"])
        for values, target in zip(data.data, data.target, strict=True):
            writer.writerow([*map(float, values), data.target_names[target]])
    return path


@pytest.fixture(scope="module")
def digits(directory: Path) -> Path:
    data = load_digits()
    path = directory / "digits.npz"
    np.savez_compressed(path, images=data.images.astype(np.uint8), labels=data.target)
    return path


@pytest.fixture(scope="module")
def table_job(directory: Path, breast_cancer: Path) -> Run:
    return run(tabular(target="diagnosis"), breast_cancer, directory / "table")


@pytest.fixture(scope="module")
def image_job(directory: Path, digits: Path) -> Run:
    spec = image()
    spec.training.max_epochs = 10
    return run(spec, digits, directory / "image")


@pytest.fixture(params=["table_job", "image_job"])
def job(request: pytest.FixtureRequest) -> Run:
    found: Run = request.getfixturevalue(request.param)
    return found


@pytest.mark.slow
class TestFinishedJob:
    """One job per task, looked at from all sides."""

    def test_ends_with_one_result(self, job: Run) -> None:
        assert job.exit == 0
        assert [next(iter(line)) for line in job.lines[:-1]] == ["progress"] * (len(job.lines) - 1)
        assert job.result.metrics["accuracy"] > 0.9
        assert {path.name for path in job.out.iterdir()} == FILES

    def test_reports_the_phases_in_order(self, job: Run) -> None:
        phases = [line["progress"]["phase"] for line in job.lines[:-1]]
        assert list(dict.fromkeys(phases)) == [
            "PHASE_STARTING",
            "PHASE_PREPARING",
            "PHASE_TRAINING",
            "PHASE_CONVERTING",
            "PHASE_EVALUATING",
        ]
        last = [line for line in job.lines[:-1] if line["progress"]["phase"] == "PHASE_TRAINING"][
            -1
        ]
        assert last["progress"]["epoch"] == len(job.result.epochs)

    def test_proved_the_graph(self, job: Run) -> None:
        parity = job.result.parity
        assert 0 <= parity.max_relative_error < 1e-5 < parity.tolerance
        assert parity.label_agreement == 1
        assert parity.row_count == job.result.rows.test + job.result.rows.validation

    def test_counts_every_row_once(self, job: Run) -> None:
        rows = job.result.rows
        assert rows.train + rows.validation + rows.test == rows.total
        assert sum(job.result.confusion_matrix) == rows.test

    def test_the_graph_holds_nothing_but_standard_onnx(self, job: Run) -> None:
        model = onnx.load(job.out / "model.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
        assert not model.graph.value_info
        assert not any(tensor.external_data for tensor in model.graph.initializer)

    def test_the_signature_is_that_of_the_graph(self, job: Run) -> None:
        session = ort.InferenceSession(job.out / "model.onnx")
        signature = job.document("signature.json")
        types = {"tensor(float)": "FP32", "tensor(uint8)": "UINT8", "tensor(string)": "BYTES"}
        for described, tensors in (
            (signature["inputs"], session.get_inputs()),
            (signature["outputs"], session.get_outputs()),
        ):
            assert [(d["name"], d["datatype"], d["shape"]) for d in described] == [
                (t.name, types[t.type], [-1, *t.shape[1:]]) for t in tensors
            ]
            assert {t.shape[0] for t in tensors} == {"batch"}
        assert signature["outputs"][1]["labels"] == list(job.result.labels)

    def test_golden_rows_reproduce_in_a_fresh_session(self, job: Run) -> None:
        session = ort.InferenceSession(job.out / "model.onnx")
        golden = np.load(job.out / "golden.npz", allow_pickle=False)
        inputs = {i.name: golden[f"input:{i.name}"] for i in session.get_inputs()}
        label, probabilities = session.run(["label", "probabilities"], inputs)
        assert len(label) >= 16
        assert set(golden["output:label"].ravel()) == set(job.result.labels)
        np.testing.assert_array_equal(label.astype(str), golden["output:label"])
        expected = golden["output:probabilities"]
        error = np.abs(probabilities - expected) / np.maximum(np.abs(expected), 1)
        assert error.max() <= golden["tolerance"] == job.result.parity.tolerance

    def test_explains_what_it_answers(self, job: Run) -> None:
        session = ort.InferenceSession(job.out / "explain.onnx")
        model = ort.InferenceSession(job.out / "model.onnx")
        assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
            (i.name, i.type, i.shape) for i in model.get_inputs()
        ]
        golden = np.load(job.out / "golden.npz", allow_pickle=False)
        inputs = {i.name: golden[f"input:{i.name}"] for i in session.get_inputs()}
        names = [output.name for output in session.get_outputs()]
        told = dict(zip(names, session.run(names, inputs), strict=True))
        described = job.document("signature.json")["explanation"]["outputs"]
        assert [output["name"] for output in described] == names == job.result.explained.outputs
        for name, values in told.items():
            expected = golden[f"explain:{name}"]
            if expected.dtype.kind == "f":
                np.testing.assert_allclose(values, expected, atol=1e-4)
            else:
                np.testing.assert_array_equal(values.astype(str), expected)
        np.testing.assert_array_equal(golden["explain:explained.target"], golden["output:label"])
        parts = [v for name, v in told.items() if name.startswith("attribution.")]
        total = sum(values.reshape(len(values), -1).sum(axis=1) for values in parts)
        change = (told["explained.score"] - told["explained.baseline_score"])[:, 0]
        np.testing.assert_allclose(total, change, atol=0.05)
        assert job.result.explained.largest_gap < job.result.explained.tolerance

    def test_the_documents_agree_with_the_result(self, job: Run) -> None:
        assert job.document("metrics.json")["accuracy"] == job.result.metrics["accuracy"]
        profile = job.document("profile.json")["latencies"]
        assert [entry["batch_size"] for entry in profile] == [1, 8, 32, 128]
        assert [entry["median_us"] for entry in profile] == [
            latency.median_us for latency in job.result.latencies
        ]
        statistics = job.document("statistics.json")
        assert statistics["row_count"] == job.result.rows.train
        assert sum(statistics["labels"].values()) == job.result.rows.train
        importances = job.document("metrics.json")["importances"]
        assert [entry["input"] for entry in importances] == [
            importance.input for importance in job.result.importances
        ]
        inputs = {tensor["name"] for tensor in job.document("signature.json")["inputs"]}
        assert {entry["input"] for entry in importances} == (inputs if len(inputs) > 1 else set())
        lineage = job.document("lineage.json")
        assert lineage["split"]["train"]["row_count"] == job.result.rows.train
        assert lineage["libraries"]["onnxruntime"] == ort.__version__
        assert isinstance(lineage["findings"], list)


@pytest.mark.slow
def test_preprocessing_saw_nothing_but_the_training_part(
    table_job: Run, breast_cancer: Path
) -> None:
    spec = parse_spec(tabular(target="diagnosis"))
    examples = load_examples(spec, breast_cancer)
    rows = split_rows(
        examples.target.strata_B, validation_fraction=0.15, test_fraction=0.15, seed=0
    )
    train = np.concatenate(list(examples.take(rows.train).values()), axis=1)
    model = onnx.load(table_job.out / "model.onnx")
    constants = {tensor.name.split("/")[-1]: tensor for tensor in model.graph.initializer}
    means = onnx.numpy_helper.to_array(constants["means"])
    np.testing.assert_allclose(means, train.mean(axis=0, dtype=np.float64), rtol=1e-6)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model(table_job: Run, breast_cancer: Path) -> None:
    again = run(tabular(target="diagnosis"), breast_cancer, table_job.out.with_name("again"))
    for name in ("model.onnx", "golden.npz", "metrics.json", "lineage.json"):
        assert again.sha256(name) == table_job.sha256(name)


@pytest.mark.slow
def test_a_budget_gives_the_graph_that_was_measured_to_keep_it(
    jobs: SuccessiveJobs, digits: Path, tmp_path: Path
) -> None:
    spec = image()
    spec.training.max_epochs = 6
    spec.optimization.objective = pb.OBJECTIVE_SIZE
    spec.optimization.max_accuracy_drop = 0.05
    job = jobs.run(spec, digits, tmp_path / "out")
    names = [variant.name for variant in job.result.variants]
    profile = job.document("profile.json")
    measured = [variant["name"] for variant in profile["variants"]]
    assert measured[:4] == ["float32", "optimized", "int8_dynamic", "int8_static"]
    assert [*measured, *(one["name"] for one in profile["unmeasured"])] == names
    assert names[4:] == ["float16"]
    (chosen,) = (variant for variant in job.result.variants if variant.chosen)
    assert not chosen.refusal
    assert chosen.accuracy_drop_interval.upper <= 0.05
    assert chosen.accuracy == pytest.approx(job.result.metrics["accuracy"])
    assert profile["variant"] == chosen.name
    model = (job.out / "model.onnx").read_bytes()
    assert len(model) == chosen.size_bytes
    session = ort.InferenceSession(model)
    with np.load(job.out / "golden.npz") as golden:
        label, probabilities = session.run(
            ["label", "probabilities"], {"image": golden["input:image"]}
        )
        np.testing.assert_array_equal(label.astype(str), golden["output:label"])
        error = np.abs(probabilities - golden["output:probabilities"]).max()
        assert error <= golden["tolerance"] <= 0.1


@pytest.mark.slow
def test_killed_or_stopped_it_goes_on_to_the_same_model_bit_for_bit(
    image_job: Run, digits: Path, tmp_path: Path
) -> None:
    spec = image()
    spec.training.max_epochs = 10
    resumed = run_interrupted(spec, digits, tmp_path / "out", tmp_path / "checkpoint")
    for name in ("model.onnx", "golden.npz", "metrics.json", "lineage.json"):
        assert resumed.sha256(name) == image_job.sha256(name)
    assert resumed.result.epochs == image_job.result.epochs


@pytest.mark.slow
def test_sigterm_ends_it_at_once_and_leaves_nothing(digits: Path, tmp_path: Path) -> None:
    spec = image()
    spec.training.max_epochs = 10_000
    spec.training.early_stopping_patience = 10_000
    out = tmp_path / "out"
    with start(spec, digits, out) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["progress"].get("epoch", 0) > 0:
                break
        signalled = time.monotonic()
        process.send_signal(signal.SIGTERM)
        rest = [json.loads(line) for line in process.stdout]
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
        assert time.monotonic() - signalled < 10
    assert all("progress" in line for line in rest)
    assert not out.exists()


def test_an_error_is_the_one_of_the_contract(tmp_path: Path) -> None:
    broken = tabular()
    broken.training.learning_rate = float("nan")
    (tmp_path / "spec").write_text(json_format.MessageToJson(broken))
    exit_status, error = fail(tmp_path)
    assert exit_status == 1
    assert error["reason"] == "ERROR_REASON_FIELD_INVALID"
    assert error["metadata"]["field"] == "training_job.spec.training.learning_rate"
    assert "learning_rate" in error["message"]


def test_a_crash_says_so_without_a_path(tmp_path: Path) -> None:
    exit_status, error = fail(tmp_path)
    assert exit_status == 1
    assert error["reason"] == "ERROR_REASON_TRAINING_JOB_CRASHED"
    assert error["metadata"] == {"exit": "1"}
    assert os.sep not in error["message"]


def fail(directory: Path) -> tuple[int, Any]:
    """Run a job on the files `spec` and `dataset` of a directory; return its status and error."""
    paths = [f"--{name}={directory / name}" for name in ("spec", "dataset", "out")]
    ended = subprocess.run(
        [sys.executable, "-m", "servery_trainer.job", *paths],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not (directory / "out").exists()
    return ended.returncode, json.loads(ended.stdout.splitlines()[-1])["error"]
