"""Which files and folders become which file to upload."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servery.packing import packed
from servery.trainer.v1 import dataset_pb2 as pb
from servery_trainer.datasets import inspect
from tests.trainer.packs import PACKERS, idx, image


def upload(*paths: Path) -> tuple[Any, str, list[tuple[str, int]]]:
    """The format, the digest, and what a server finds: the columns and their distinct values."""
    with packed(paths) as file:
        assert file.display_name == paths[0].name
        columns = inspect(file.path, file.format).columns
        digest = hashlib.sha256(file.path.read_bytes()).hexdigest()
        return file.format, digest, [(column.name, column.distinct_count) for column in columns]


def write(directory: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


IMAGES = {"cat/1.png": image(color=1), "dog/1.png": image(color=2), "dog/2.png": image(color=3)}
TEXTS = {"good/1.txt": b"well done", "bad/1.txt": b"oh no"}


def test_a_folder_of_images_is_packed_alike_wherever_it_lies(tmp_path: Path) -> None:
    first = upload(write(tmp_path / "one" / "pets", IMAGES | {"cat/.DS_Store": b"junk"}))
    other = write(tmp_path / "two" / "pets", dict(reversed(IMAGES.items())))
    (other / "cat" / "1.png").chmod(0o600)
    os.utime(other / "cat" / "1.png", (1, 1))
    assert first == upload(other)
    assert first[0] == pb.DATASET_FORMAT_IMAGES
    assert first[2][1] == ("labels", 2)


def test_a_folder_of_texts(tmp_path: Path) -> None:
    found, _, columns = upload(write(tmp_path / "reviews", TEXTS))
    assert found == pb.DATASET_FORMAT_TEXTS
    assert columns == [("text", 2), ("label", 2)]


@pytest.mark.parametrize("suffix", PACKERS)
def test_archives_are_taken_as_they_are(tmp_path: Path, suffix: str) -> None:
    pair = {"train-images-idx3-ubyte": idx(np.zeros((2, 3, 3))), "l-idx1": idx(np.arange(2))}
    for files, format_ in (
        (IMAGES, pb.DATASET_FORMAT_IMAGES),
        (TEXTS, pb.DATASET_FORMAT_TEXTS),
        (pair, pb.DATASET_FORMAT_IDX),
    ):
        path = tmp_path / f"data.{suffix}"
        path.write_bytes(PACKERS[suffix]({".hidden": b"x"} | files))
        found, digest, _ = upload(path)
        assert found == format_
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_two_idx_files_are_packed(tmp_path: Path) -> None:
    write(tmp_path, {"images": idx(np.zeros((2, 3, 3))), "labels": idx(np.arange(2))})
    found, digest, columns = upload(tmp_path / "images", tmp_path / "labels")
    assert (found, columns[1]) == (pb.DATASET_FORMAT_IDX, ("labels", 2))
    assert digest == upload(tmp_path / "images", tmp_path / "labels")[1]


def test_a_line_of_a_text_file_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(b'\xef\xbb\xbfsay "hi"\r\n\n  \n second\n')
    with packed([path]) as file:
        assert file.format == pb.DATASET_FORMAT_JSON_LINES
        rows = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert rows == [{"text": 'say "hi"'}, {"text": "second"}]


def test_refuses_what_is_nothing_of_that(tmp_path: Path) -> None:
    mixed = write(tmp_path / "mixed", {"a/1.png": image(), "a/2.txt": b"x"})
    empty = tmp_path / "empty"
    empty.mkdir()
    files = write(tmp_path, {"a.doc": b"x", "b.zip": b"x", "c.tar": b"x"})
    for paths in (
        [mixed],
        [empty],
        [files / "a.doc"],
        [files / "b.zip"],
        [files / "c.tar"],
        [files / "a.doc"] * 3,
    ):
        with pytest.raises(ValueError, match=r"\w"), packed(paths):
            pass
