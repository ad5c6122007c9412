"""Images that teach a number or labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from sklearn.datasets import load_digits

from servery.trainer.v1 import dataset_pb2
from servery_rpc.errors import FieldInvalidError
from servery_trainer.data_errors import DatasetInvalidError
from servery_trainer.examples import load_examples
from servery_trainer.label_sets import LabelSets
from servery_trainer.quantities import Quantities
from servery_trainer.spec import parse_spec
from servery_trainer.tasks import has_classes, tells_accuracy
from tests.trainer.job_process import SuccessiveJobs
from tests.trainer.packs import as_zip
from tests.trainer.packs import image as png
from tests.trainer.specs import table

IMAGES = np.arange(16 * 12, dtype=np.uint8).reshape(16, 4, 3)
EVERY = np.arange(16)
BITS = np.stack([EVERY % 2, EVERY // 2 % 2, EVERY // 4 % 2], axis=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "arrays"


def load(file: Path, task: str, taught: Any, **fields: Any) -> Any:
    with file.open("wb") as stream:
        np.savez(stream, images=IMAGES, labels=taught)
    return load_examples(parse_spec(table(task, **fields)), file).target


@pytest.mark.parametrize("dtype", [np.int16, np.float64, np.str_])
@pytest.mark.parametrize("shape", [(16,), (16, 1)])
def test_a_number_is_learned_from_an_array(
    file: Path, dtype: type[Any], shape: tuple[int, ...]
) -> None:
    target = load(file, "image_regression", (EVERY * 3).astype(dtype).reshape(shape))
    assert isinstance(target, Quantities)
    assert target.values.dtype == np.float32
    assert target.values.tolist() == (EVERY * 3.0)[:, None].tolist()


def test_folders_may_be_named_by_the_number(file: Path) -> None:
    file.write_bytes(as_zip({f"{n / 2}/{n}.png": png(color=n) for n in range(8)}))
    target = load_examples(parse_spec(table("image_regression")), file).target
    assert target.values[:, 0].tolist() == [n / 2 for n in range(8)]


@pytest.mark.parametrize("dtype", [np.bool_, np.int64, np.uint8])
def test_labels_are_learned_from_a_matrix(file: Path, dtype: type[Any]) -> None:
    target = load(file, "image_multi_label", BITS.astype(dtype))
    assert isinstance(target, LabelSets)
    assert target.labels == ("0", "1", "2")
    assert target.values.tolist() == BITS.tolist()
    assert load(file, "image_multi_label", BITS, names=["a", "b", "c"]).labels == ("a", "b", "c")


@pytest.mark.parametrize(
    ("task", "taught", "expected"),
    [
        ("image_regression", BITS, {"problem": "WRONG_SHAPE"}),
        ("image_regression", EVERY > 4, {"problem": "WRONG_DTYPE"}),
        ("image_regression", EVERY * 0, {"problem": "CONSTANT_TARGET"}),
        ("image_regression", [1e40, *range(15)], {"problem": "NOT_A_NUMBER", "row": "1"}),
        ("image_regression", [*range(15), "x"], {"problem": "NOT_A_NUMBER", "row": "16"}),
        ("image_regression", [*range(15), " "], {"problem": "MISSING_VALUE", "row": "16"}),
        ("image_multi_label", EVERY, {"problem": "WRONG_SHAPE"}),
        ("image_multi_label", BITS * 1.0, {"problem": "WRONG_DTYPE"}),
        ("image_multi_label", BITS * 2, {"problem": "WRONG_TYPE", "row": "2"}),
        ("image_multi_label", BITS[:, :1], {"problem": "ONE_CLASS"}),
        ("image_multi_label", np.c_[BITS, EVERY == 3], {"problem": "RARE_CLASS"}),
    ],
)
def test_what_cannot_be_learned_is_refused_by_its_place(
    file: Path, task: str, taught: Any, expected: dict[str, str]
) -> None:
    with pytest.raises(DatasetInvalidError) as caught:
        load(file, task, taught)
    assert caught.value.metadata == expected | {"array": "labels"}


def test_labels_have_all_names_or_none(file: Path) -> None:
    with pytest.raises(FieldInvalidError) as caught:
        load(file, "image_multi_label", BITS, names=["a", "b"])
    assert caught.value.metadata["field"] == "training_job.spec.image_multi_label.names"


@pytest.mark.parametrize(
    ("task", "fields", "field"),
    [
        ("image_regression", {"values": "images"}, "values"),
        ("image_multi_label", {"labels": "images"}, "labels"),
        ("image_multi_label", {"names": ["a", "a"]}, "names[1]"),
        ("image_regression", {"duplicates": 9}, "duplicates"),
    ],
)
def test_a_malformed_field_is_refused(task: str, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldInvalidError) as caught:
        parse_spec(table(task, **fields))
    assert caught.value.metadata["field"] == f"training_job.spec.{task}.{field}"


def test_only_files_that_can_hold_a_matrix_teach_labels() -> None:
    labels = parse_spec(table("image_multi_label", names=["a", "b"]))
    number = parse_spec(table("image_regression", values="ages"))
    for spec in (labels, number):
        assert parse_spec(spec.to_proto()) == spec
    assert labels.task.dataset_formats == {dataset_pb2.DATASET_FORMAT_NPZ}
    assert dataset_pb2.DATASET_FORMAT_IMAGES in number.task.dataset_formats
    assert [has_classes(spec.task) for spec in (labels, number)] == [True, False]
    assert not any(tells_accuracy(spec.task) for spec in (labels, number))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "metric", "least"),
    [("image_regression", "r2", 0.7), ("image_multi_label", "roc_auc", 0.9)],
)
def test_learns_numbers_and_labels_of_real_images(
    jobs: SuccessiveJobs, tmp_path: Path, task: str, metric: str, least: float
) -> None:
    data, path = load_digits(), tmp_path / "digits.npz"
    labels = np.stack([data.target % 2 == 1, data.target > 4, data.target % 5 == 0], axis=1)
    taught = data.target if task == "image_regression" else labels
    np.savez(path, images=data.images.astype(np.uint8), labels=taught)
    spec = table(task)
    spec.training.max_epochs = 8
    job = jobs.run(spec, path, tmp_path / "out")
    assert job.exit == 0, job.lines[-1]
    assert job.result.metrics[metric] > least
    assert job.result.parity.max_relative_error <= 1e-4
    assert json.loads((job.out / "signature.json").read_text())["task"] == task
    session = ort.InferenceSession(job.out / "model.onnx")
    with np.load(job.out / "golden.npz") as golden:
        outputs = [name.removeprefix("output:") for name in golden.files if "output:" in name]
        served = session.run(outputs, {"image": golden["input:image"]})
        for name, values in zip(outputs, served, strict=True):
            np.testing.assert_allclose(values, golden[f"output:{name}"], rtol=1e-4, atol=1e-4)
