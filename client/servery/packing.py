"""What lies on a disk as the one file that the trainer takes; the same data give the same bytes."""

import json
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from servery.trainer.v1 import dataset_pb2 as pb

FORMATS: Final = {
    ".csv": pb.DATASET_FORMAT_CSV,
    ".jsonl": pb.DATASET_FORMAT_JSON_LINES,
    ".npz": pb.DATASET_FORMAT_NPZ,
    ".parquet": pb.DATASET_FORMAT_PARQUET,
}
"""File name suffix to the format it means; archives (`ARCHIVES`) are looked into."""

ARRAYS: Final = frozenset({pb.DATASET_FORMAT_NPZ, pb.DATASET_FORMAT_IDX, pb.DATASET_FORMAT_IMAGES})
"""Formats of arrays; all others are tables."""

ARCHIVES: Final = (".zip", ".tar", ".tar.gz", ".tgz")

_IMAGES: Final = (".png", ".jpg", ".jpeg")
_MAX_DISPLAY_NAME: Final = 200


@dataclass(frozen=True, slots=True)
class Packed:
    """A file to upload."""

    path: Path
    format: pb.DatasetFormat.ValueType
    display_name: str


@contextmanager
def packed(paths: Sequence[Path]) -> Iterator[Packed]:
    """Make one file of `paths`; a temporary one is gone when the block is left.

    Taken are: a file of one of `FORMATS`; an archive of two IDX files, or of PNG and JPEG images or
    `.txt` files in one folder per class; a folder with such folders; a `.txt` file, of which each
    line that is not blank becomes a row of the column `text`; two IDX files.

    Raises:
        ValueError: They are nothing of that.
        OSError: A file cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="servery-") as directory:
        made, first = Path(directory) / "packed", paths[0]
        name = first.resolve().name[:_MAX_DISPLAY_NAME]
        if len(paths) > 1:
            yield Packed(_pack_idx(paths, made), pb.DATASET_FORMAT_IDX, name)
        elif first.is_dir():
            yield Packed(made, _pack_folder(first, made), name)
        elif first.suffix.lower() in FORMATS:
            yield Packed(first, FORMATS[first.suffix.lower()], name)
        elif first.suffix.lower() == ".txt":
            yield Packed(_as_json_lines(first, made), pb.DATASET_FORMAT_JSON_LINES, name)
        elif first.name.lower().endswith(ARCHIVES):
            yield Packed(first, _format_of(first), name)
        else:
            known = ", ".join((*FORMATS, *ARCHIVES, ".txt"))
            raise ValueError(f"{first.name}: a dataset is a folder, or a file ending in {known}")


def _pack_idx(paths: Sequence[Path], made: Path) -> Path:
    if len(paths) != 2:
        raise ValueError("give one file or folder, or two IDX files: one of images, one of labels")
    with tarfile.open(made, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in paths:
            _add(archive, path, path.name)
    return made


def _pack_folder(folder: Path, made: Path) -> pb.DatasetFormat.ValueType:
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    ]
    kinds = {_kind(path.name) for path in files}
    if len(kinds) != 1:
        found = "both images and texts" if kinds else "no file"
        raise ValueError(f"{folder.name} holds {found}; give it one folder of files per class")
    with tarfile.open(made, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in files:
            _add(archive, path, path.relative_to(folder).as_posix())
    return kinds.pop()


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    entry = tarfile.TarInfo(name)  # without owner, time and mode: only names and contents count
    with path.open("rb") as file:
        entry.size = path.stat().st_size
        archive.addfile(entry, file)


def _as_json_lines(path: Path, made: Path) -> Path:
    with (
        path.open(encoding="utf-8-sig", newline="\n") as lines,
        made.open("w", encoding="utf-8", newline="\n") as rows,
    ):
        for line in lines:
            if text := line.strip():
                rows.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return made


def _format_of(path: Path) -> pb.DatasetFormat.ValueType:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = (entry.filename for entry in archive.infolist() if not entry.is_dir())
                return _kind(next(_visible(names), ""))
        with tarfile.open(path) as tar:
            names = (entry.name for entry in tar if entry.isreg())
            return _kind(next(_visible(names), ""))
    except (zipfile.BadZipFile, tarfile.TarError, EOFError):
        raise ValueError(f"{path.name} is not an archive that can be read") from None


def _visible(names: Iterator[str]) -> Iterator[str]:
    for name in names:
        parts = [part for part in name.split("/") if part != "."]
        if not any(part.startswith(".") or part == "__MACOSX" for part in parts):
            yield name


def _kind(name: str) -> pb.DatasetFormat.ValueType:
    """Tell the format of an archive by one of its names; the server looks at all contents."""
    if name.lower().endswith(".txt"):
        return pb.DATASET_FORMAT_TEXTS
    if "idx" in name.rpartition("/")[2].lower() and not name.lower().endswith(_IMAGES):
        return pb.DATASET_FORMAT_IDX
    return pb.DATASET_FORMAT_IMAGES
