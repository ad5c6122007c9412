"""Which images a job learns from, and which it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.data_errors import DatasetInvalidError, Problem
from servery_trainer.examples import Examples, load_examples
from servery_trainer.spec import parse_spec
from servery_trainer.targets import Classes
from tests.trainer.packs import as_zip
from tests.trainer.packs import image as png
from tests.trainer.specs import image


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "dataset"


def classes(examples: Examples) -> Classes:
    assert isinstance(examples.target, Classes)
    return examples.target


def load_images(file: Path, arrays: dict[str, Any], **task: Any) -> Examples:
    with file.open("wb") as stream:
        np.savez(stream, **arrays)
    return load_examples(parse_spec(image(**task)), file)


def pictures(count: int = 6, **replaced: Any) -> dict[str, Any]:
    """Images that differ, and the classes 0 and 1 in turn."""
    images = np.arange(count * 12, dtype=np.uint8).reshape(count, 4, 3)
    return {"images": images, "labels": np.arange(count) % 2} | replaced


def test_gives_grey_images_a_channel_and_keeps_their_dtype(file: Path) -> None:
    examples = load_images(file, pictures())
    assert list(examples.inputs) == ["image"]
    assert examples.inputs["image"].shape == (6, 4, 3, 1)
    assert examples.inputs["image"].dtype == np.uint8
    assert classes(examples).labels == ("0", "1")


@pytest.mark.parametrize(
    ("stored", "sent"),
    [("f8", np.float32), (">f4", np.float32), (">u2", np.uint16), ("f2", np.float16)],
)
def test_reads_any_number_type_in_any_order(file: Path, stored: str, sent: Any) -> None:
    images = np.asfortranarray(np.arange(6 * 12).reshape(6, 2, 3, 2).astype(stored))
    examples = load_images(file, pictures(images=images))
    assert examples.inputs["image"].dtype == sent
    np.testing.assert_array_equal(examples.inputs["image"], images)


@pytest.mark.parametrize(
    "texts", [np.array(["no", "yes"] * 3), np.array([b"no", b"yes"] * 3)], ids=["str", "bytes"]
)
def test_reads_classes_as_text(file: Path, texts: Any) -> None:
    assert classes(load_images(file, pictures(labels=texts))).labels == ("no", "yes")


def test_reads_the_arrays_asked_for(file: Path) -> None:
    arrays = {"x": pictures()["images"], "y": pictures()["labels"], "more": np.zeros(6)}
    assert load_images(file, arrays, images="x", labels="y").total == 6


NAN = np.where(np.arange(24).reshape(6, 2, 2) == 9, np.nan, np.arange(24).reshape(6, 2, 2))


@pytest.mark.parametrize(
    ("replaced", "problem", "place"),
    [
        pytest.param(
            {"images": NAN}, Problem.NOT_A_NUMBER, {"row": "3", "array": "images"}, id="nan"
        ),
        pytest.param(
            {"images": np.full((6, 2, 2), 1e300)},
            Problem.NOT_A_NUMBER,
            {"row": "1", "array": "images"},
            id="beyond float32",
        ),
        pytest.param(
            {"images": np.zeros((6, 2))}, Problem.WRONG_SHAPE, {"array": "images"}, id="flat"
        ),
        pytest.param(
            {"labels": np.zeros((6, 2), int)}, Problem.WRONG_SHAPE, {"array": "labels"}, id="pairs"
        ),
        pytest.param(
            {"images": np.zeros((6, 2, 2), bool)},
            Problem.WRONG_DTYPE,
            {"array": "images"},
            id="boolean pixels",
        ),
        pytest.param(
            {"labels": np.zeros(6)}, Problem.WRONG_DTYPE, {"array": "labels"}, id="float classes"
        ),
        pytest.param(
            {"labels": np.array(["a", ""] * 3)},
            Problem.MISSING_VALUE,
            {"row": "2", "array": "labels"},
            id="empty class",
        ),
        pytest.param(
            {"labels": np.array([b"a", b"\xff"] * 3)},
            Problem.MALFORMED,
            {"row": "2", "array": "labels"},
            id="no UTF-8",
        ),
        pytest.param(
            {"labels": np.zeros(6, int)}, Problem.ONE_CLASS, {"array": "labels"}, id="one class"
        ),
        pytest.param(
            {"labels": np.array([0, 0, 0, 0, 1, 1])},
            Problem.RARE_CLASS,
            {"array": "labels"},
            id="two of a class",
        ),
        pytest.param(
            {"images": np.zeros((6, 2, 2))}, Problem.DUPLICATE_ROW, {"row": "3"}, id="repeated"
        ),
    ],
)
def test_refuses_images(
    file: Path, replaced: dict[str, Any], problem: Problem, place: dict[str, str]
) -> None:
    with pytest.raises(DatasetInvalidError) as refused:
        load_images(file, pictures(**replaced))
    assert refused.value.metadata == {"problem": problem} | place


def test_refuses_an_archive_without_the_array(file: Path) -> None:
    with pytest.raises(DatasetInvalidError) as refused:
        load_images(file, {"x": np.zeros((6, 2, 2))}, images="x")
    assert refused.value.metadata == {"problem": "MISSING_ARRAY", "array": "labels"}


def test_image_files_get_the_size_asked_for(file: Path) -> None:
    file.write_bytes(as_zip({f"{n % 2}/{n}.png": png(size=(4 + n, 4), color=n) for n in range(8)}))
    sizing = pb.ImageSizing(fit=pb.IMAGE_FIT_PAD, width=5, height=6)
    examples = load_examples(parse_spec(image(sizing=sizing)), file)
    assert examples.inputs["image"].shape == (8, 6, 5, 3)
    assert classes(examples).labels == ("0", "1")
    with pytest.raises(DatasetInvalidError) as error:
        load_examples(parse_spec(image()), file)
    assert error.value.metadata == {"problem": "WRONG_SHAPE", "row": "2", "array": "images"}


@pytest.mark.parametrize(
    ("sizing", "field"),
    [
        (pb.ImageSizing(width=5), "width"),
        (pb.ImageSizing(fit=pb.IMAGE_FIT_CROP, width=5), "height"),
        (pb.ImageSizing(fit=pb.IMAGE_FIT_CROP, width=5000, height=5), "width"),
        (pb.ImageSizing(fit=9), "fit"),  # type: ignore[arg-type]
    ],
)
def test_refuses_sizes_that_cannot_be(sizing: pb.ImageSizing, field: str) -> None:
    with pytest.raises(FieldInvalidError) as error:
        parse_spec(image(sizing=sizing))
    place = f"training_job.spec.image_classification.sizing.{field}"
    assert error.value.metadata["field"] == place
