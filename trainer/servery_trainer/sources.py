"""Tables of any format, read alike: the names of the columns, then blocks of text cells."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from servery.trainer.v1 import dataset_pb2 as pb
from servery_trainer import json_lines, parquet, tables, text_folders
from servery_trainer.members import is_archive
from servery_trainer.tables import Block

_READERS: Final[dict[pb.DatasetFormat.ValueType, ModuleType]] = {
    pb.DATASET_FORMAT_CSV: tables,
    pb.DATASET_FORMAT_JSON_LINES: json_lines,
    pb.DATASET_FORMAT_PARQUET: parquet,
    pb.DATASET_FORMAT_TEXTS: text_folders,
}
FORMATS: Final = frozenset(_READERS)
"""Those of tables."""


def sniff(path: Path) -> pb.DatasetFormat.ValueType:
    """Tell the format of a table by how the file begins; anything may be CSV."""
    with path.open("rb") as file:
        start = file.read(4096)
    if start.startswith(b"PAR1"):
        return pb.DATASET_FORMAT_PARQUET
    if is_archive(start):
        return pb.DATASET_FORMAT_TEXTS
    if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return pb.DATASET_FORMAT_JSON_LINES
    return pb.DATASET_FORMAT_CSV


def read_header(path: Path) -> tuple[str, ...]:
    """Return the names of the columns.

    Raises:
        DatasetInvalidError: The file is empty or malformed, or a name is missing, repeated or
            unusable.
    """
    names: tuple[str, ...] = _reader(path).read_header(path)
    return names


def read_blocks(
    path: Path, header: Sequence[str], columns: Sequence[str] | None = None
) -> Iterator[Block]:
    """Yield the rows of a file with this `header`; see `tables.read_blocks`."""
    blocks: Iterator[Block] = _reader(path).read_blocks(path, header, columns)
    return blocks


def _reader(path: Path) -> Any:
    return _READERS[sniff(path)]
