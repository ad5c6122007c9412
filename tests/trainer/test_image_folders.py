"""Archives of images and of IDX files, as arrays; archives of texts, as tables."""

import gzip
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from servery.trainer.v1 import dataset_pb2 as pb
from servery.trainer.v1 import training_pb2
from servery_trainer import images
from servery_trainer.arrays import open_arrays
from servery_trainer.data_errors import DatasetInvalidError
from servery_trainer.datasets import inspect
from servery_trainer.images import Sizing
from tests.trainer.packs import PACKERS, as_tar, as_zip, idx, image

Pack = Callable[[Mapping[str, bytes]], bytes]
MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "upload"


def load(path: Path, packed: bytes, **sizing: Any) -> dict[str, Any]:
    path.write_bytes(packed)
    with open_arrays(path, Sizing(**sizing)) as arrays:
        return {name: arrays.load(name) for name in arrays.headers}


def refused(path: Path, packed: bytes, format: Any) -> dict[str, str]:  # noqa: A002
    path.write_bytes(packed)
    with pytest.raises(DatasetInvalidError) as error:
        inspect(path, format)
    assert str(path) not in str(error.value)
    return error.value.metadata


FLOWERS = {
    "flowers/rose/1.png": image(color=(255, 0, 0)),
    "flowers/iris/1.jpg": image(color=(0, 0, 255), format="JPEG", quality=95),
    "flowers/rose/2.png": image(mode="L", color=9),
}


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_images_in_folders_become_arrays(path: Path, pack: Pack) -> None:
    found = load(path, pack(FLOWERS))
    assert found["labels"].tolist() == ["rose", "iris", "rose"]
    assert found["images"].shape == (3, 3, 4, 3)
    assert found["images"][0, 0, 0].tolist() == [255, 0, 0]
    np.testing.assert_allclose(found["images"][1, 0, 0], [0, 0, 255], atol=3)
    assert found["images"][2, 0, 0].tolist() == [9, 9, 9]
    pixels, labels = inspect(path, pb.DATASET_FORMAT_IMAGES).columns
    assert (list(pixels.shape), pixels.dtype, pixels.maximum) == ([3, 3, 4, 3], "uint8", 255)
    assert (labels.type, labels.distinct_count) == (pb.COLUMN_TYPE_TEXT, 2)


def test_grey_images_have_one_channel(path: Path) -> None:
    packed = as_zip({"a/1.png": image(mode="L"), "b/2.png": image(mode="1", color=1)})
    found = load(path, packed)["images"]
    assert found.shape == (2, 3, 4, 1)
    assert found[1].min() == 255


def test_images_are_turned_as_they_say(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = load(path, as_zip({"a/1.jpg": image(size=(9, 5), format="JPEG", exif=exif)}))
    assert found["images"].shape == (1, 9, 5, 3)


STRIPES = {"a/1.png": image(size=(8, 4), color=(200, 0, 0)), "b/2.png": image(size=(4, 4))}


@pytest.mark.parametrize(
    ("fit", "black"),
    [
        (training_pb2.IMAGE_FIT_STRETCH, 0),
        (training_pb2.IMAGE_FIT_CROP, 0),
        (training_pb2.IMAGE_FIT_PAD, 6 * 3),
    ],
)
def test_images_of_several_sizes_get_one_as_declared(path: Path, fit: int, black: int) -> None:
    found = load(path, as_zip(STRIPES), fit=fit, width=6, height=6)["images"]
    assert found.shape == (2, 6, 6, 3)
    assert int((found[0, :, :, 0] == 0).sum()) == black


def test_images_of_several_sizes_are_stored_and_only_refused_to_train_on(path: Path) -> None:
    path.write_bytes(as_zip(STRIPES))
    assert list(inspect(path, pb.DATASET_FORMAT_IMAGES).columns[0].shape) == [2, -1, -1, 3]
    with pytest.raises(DatasetInvalidError) as error:
        load(path, as_zip(STRIPES))
    assert error.value.metadata == {"problem": "WRONG_SHAPE", "row": "2", "array": "images"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"hello", "MALFORMED", id="text"),
        pytest.param(b"", "MALFORMED", id="empty"),
        pytest.param(image()[:45], "MALFORMED", id="cut off"),
        pytest.param(image(format="GIF", mode="L"), "MALFORMED", id="GIF"),
        pytest.param(image(mode="I;16", color=300), "WRONG_DTYPE", id="16 bits"),
        pytest.param(image(mode="CMYK", format="JPEG"), "WRONG_DTYPE", id="CMYK"),
        pytest.param(image(mode="RGBA", color=(1, 2, 3, 4)), "WRONG_DTYPE", id="transparent"),
        pytest.param(as_zip({}), "MALFORMED", id="empty archive"),
        pytest.param(as_zip({"b": b"x"}), "NESTED_ARCHIVE", id="archive"),
        pytest.param(image(mode="1", size=(10_000, 6_000), color=0), "TOO_LARGE", id="bomb"),
    ],
)
def test_refuses_what_is_no_image_by_name(path: Path, content: bytes, problem: str) -> None:
    packed = as_tar({"a/1.png": image(), "a/2.png": content})
    found = refused(path, packed, pb.DATASET_FORMAT_IMAGES)
    assert found == {"problem": problem, "file": "a/2.png"}


def test_refuses_images_that_are_too_large_together(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_FREE_PIXEL_BYTES", 1000)
    monkeypatch.setattr(images, "_PIXEL_RATIO", 1)
    packed = as_zip({f"a/{number}.png": image(size=(60, 60)) for number in range(3)})
    found = refused(path, packed, pb.DATASET_FORMAT_IMAGES)
    assert found == {"problem": "TOO_LARGE", "array": "images"}
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    found = refused(path, packed, pb.DATASET_FORMAT_IMAGES)
    assert found == {"problem": "TOO_LARGE", "file": "a/0.png"}


@pytest.mark.parametrize("name", ["1.png", "b/c/1.png"])
def test_refuses_files_outside_of_the_folders(path: Path, name: str) -> None:
    packed = as_tar({"a/1.png": image(), name: image()})
    found = refused(path, packed, pb.DATASET_FORMAT_IMAGES)
    assert found == {"problem": "WRONG_LAYOUT", "file": name}


PIXELS = np.arange(2 * 3 * 4).reshape(2, 3, 4)
PAIR = {"images-idx3-ubyte": idx(PIXELS), "labels-idx1-ubyte": idx(np.array([5, 7]))}


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
@pytest.mark.parametrize("squeeze", [bytes, gzip.compress])
def test_a_pair_of_idx_files_becomes_arrays(
    path: Path, pack: Pack, squeeze: Callable[[bytes], bytes]
) -> None:
    found = load(path, pack({name: squeeze(content) for name, content in PAIR.items()}))
    np.testing.assert_array_equal(found["images"], PIXELS)
    assert found["labels"].tolist() == [5, 7]
    pixels, labels = inspect(path, pb.DATASET_FORMAT_IDX).columns
    assert (list(pixels.shape), pixels.minimum, pixels.maximum) == ([2, 3, 4], 0, 23)
    assert labels.distinct_count == 2


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        pytest.param({"i": PAIR["images-idx3-ubyte"]}, "MISSING_ARRAY", id="no labels"),
        pytest.param(PAIR | {"l": idx(np.array([1, 2]))}, "MISSING_ARRAY", id="one too many"),
        pytest.param(
            {"i": idx(PIXELS), "l": idx(np.array([1, 2, 3]))}, "WRONG_SHAPE", id="other rows"
        ),
        pytest.param({"i": idx(PIXELS)[:-1]}, "MALFORMED", id="short"),
        pytest.param({"i": idx(PIXELS) + b"x"}, "MALFORMED", id="long"),
        pytest.param({"i": b"\0\0\x08"}, "MALFORMED", id="header"),
        pytest.param({"i": b"\0\0\x07\x01" + b"\0" * 8}, "MALFORMED", id="type"),
        pytest.param({"i": b"\0\0\x08\xff" + b"\0" * 2000}, "MALFORMED", id="axes"),
        pytest.param({"i": idx(np.zeros((0, 2)))}, "EMPTY", id="no rows"),
        pytest.param({"i": b"\0\0\x08\x02" + b"\xff" * 8}, "TOO_LARGE", id="exabytes"),
        pytest.param({"i": gzip.compress(idx(PIXELS))[:-9]}, "MALFORMED", id="gzip cut off"),
        pytest.param({"a.png": image()}, "MALFORMED", id="image"),
    ],
)
def test_refuses_idx_files(path: Path, files: dict[str, bytes], problem: str) -> None:
    assert refused(path, as_tar(files), pb.DATASET_FORMAT_IDX)["problem"] == problem


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"no MNIST at {MNIST}")
def test_mnist_is_read_as_it_was_published(path: Path) -> None:
    names = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    found = load(path, as_tar({name: (MNIST / name).read_bytes() for name in names}))
    assert found["images"].shape == (10_000, 28, 28)
    assert np.bincount(found["labels"]).tolist()[:3] == [980, 1135, 1032]
    assert found["images"].mean() == pytest.approx(33.79, abs=0.01)


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_texts_in_folders_become_a_table(path: Path, pack: Pack) -> None:
    path.write_bytes(pack({"good/1.txt": b"\xef\xbb\xbfwell\ndone", "bad/1.txt": "ärgh".encode()}))
    info = inspect(path, pb.DATASET_FORMAT_TEXTS)
    assert info.row_count == 2
    assert [column.name for column in info.columns] == ["text", "label"]
    assert [column.distinct_count for column in info.columns] == [2, 2]


def test_refuses_a_text_that_is_none_by_name(path: Path) -> None:
    for content in (b"\xff", b"a\0b"):
        packed = as_tar({"a/1.txt": b"fine", "a/2.txt": content})
        found = refused(path, packed, pb.DATASET_FORMAT_TEXTS)
        assert found == {"problem": "MALFORMED", "file": "a/2.txt"}


def test_arrays_may_be_named_as_files_may_not(path: Path) -> None:
    arrays: dict[str, Any] = {"..\\images": PIXELS, ".labels": np.array([5, 7])}
    with path.open("wb") as stream:
        np.savez(stream, **arrays)
    assert inspect(path, pb.DATASET_FORMAT_NPZ).row_count == 2
    with open_arrays(path) as opened:
        np.testing.assert_array_equal(opened.load("..\\images"), PIXELS)
