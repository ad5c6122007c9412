"""A table held for examination: a number or a code for each cell, and none refused.

Shape suffixes: B rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from servery.trainer.v1 import dataset_pb2 as pb
from servery_trainer import columns, sources, tables

MOST_CELLS: Final = 50_000_000
"""Cells that are held; of a larger table the first rows are."""

_MISSING: Final = 0
_NAN_BITS: Final = np.int64(0x7FF8000000000000)


@dataclass(slots=True)
class Column:
    """One column."""

    name: str
    kind: pb.ColumnType.ValueType
    values_B: NDArray[Any] = field(default_factory=lambda: np.empty(0))
    """NUMERIC: float64, NaN if missing or no number. Else: int64, the hash of the text in this
    process, 0 if missing."""
    wrong_rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Indices of cells that are not of this kind."""

    @property
    def numeric(self) -> bool:
        """Whether `values_B` are numbers."""
        return self.kind == pb.COLUMN_TYPE_NUMERIC

    @property
    def present_B(self) -> NDArray[np.bool_]:
        """Which cells hold a value of this kind."""
        present_B: NDArray[np.bool_] = self.values_B != _MISSING
        return ~np.isnan(self.values_B) if self.numeric else present_B

    @property
    def bits_B(self) -> NDArray[np.int64]:
        """A number for each cell, the same for the same value."""
        if not self.numeric:
            return self.values_B
        bits = (self.values_B + 0.0).view(np.int64)  # adding 0 makes -0.0 and 0.0 the same
        return np.where(self.present_B, bits, _NAN_BITS)


@dataclass(frozen=True, slots=True)
class Examined:
    """The columns that were asked for, and some of their texts."""

    columns: Mapping[str, Column]
    row_count: int
    texts_B: NDArray[np.object_] | None
    """Those of the column that was to be kept as text; "" if missing."""
    labels: Mapping[int, str]
    """The text of each code of the target, if it is not NUMERIC."""


def examine(
    path: Path,
    names: Sequence[str],
    declared: Mapping[str, pb.ColumnType.ValueType],
    *,
    target: str = "",
    kept: str = "",
) -> Examined:
    """Read columns of a table.

    Args:
        path: The table.
        names: The columns.
        declared: What some of them are if they look otherwise.
        target: That of which labels are to be told; empty for none.
        kept: That of which the texts are to be kept; empty for none.

    Raises:
        DatasetInvalidError: There is no such column.
    """
    header = sources.read_header(path)
    for name in (*names, *declared):
        if name not in header:
            raise tables.missing_column(name, header)
    inferred = columns.infer_types(path, header, [name for name in names if name not in declared])
    if not names:
        raise tables.missing_column("", header)
    found = {name: Column(name, declared.get(name) or inferred[name]) for name in names}
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    wrong_parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in names}
    texts: list[NDArray[np.object_]] = []
    labels: dict[int, str] = {}
    rows = 0
    for block in _blocks(path, header, names):
        for name, cells in zip(names, block, strict=True):
            column = found[name]
            wrong, values = _parse(cells, column.kind)
            wrong_parts[name].append(wrong + rows)
            parts[name].append(values)
            if name == target and not column.numeric:
                labels |= {_code(text): text for text in pc.unique(cells.drop_null()).to_pylist()}
            if name == kept:
                texts.append(columns.texts(cells, pb.COLUMN_TYPE_TEXT))
        rows += len(block[0])
    for name, column in found.items():
        column.values_B = np.concatenate(parts[name])
        column.wrong_rows = np.concatenate(wrong_parts[name])
    return Examined(found, rows, np.concatenate(texts) if texts else None, labels)


def _blocks(path: Path, header: Sequence[str], names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    left = MOST_CELLS // len(names)
    for block in sources.read_blocks(path, header, names):
        yield tuple(cells.slice(0, left) for cells in block.columns)
        left -= len(block.columns[0])
        if left <= 0:
            return


def _parse(cells: Any, kind: pb.ColumnType.ValueType) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the indices of cells that are not of a kind, and what is held of all."""
    if kind == pb.COLUMN_TYPE_NUMERIC:
        right = pc.fill_null(tables.are_numbers(cells), fill_value=True)
        if not pc.all(right).as_py():
            cells = pc.if_else(right, cells, pa.scalar(None, pa.string()))
        numbers = pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False)
        finite = np.isfinite(numbers) | np.isnan(numbers)
        right_B = right.to_numpy(zero_copy_only=False).astype(np.bool_) & finite
        return np.flatnonzero(~right_B), np.where(finite, numbers, np.nan)
    wrong = np.empty(0, np.int64)
    if kind != pb.COLUMN_TYPE_TEXT:
        right_B = columns.are_dates(cells) if kind == pb.COLUMN_TYPE_DATE else _booleans(cells)
        missing_B = pc.is_null(cells).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(~right_B & ~missing_B)
    coded = pc.dictionary_encode(cells)
    codes = np.array([_code(text) for text in coded.dictionary.to_pylist()] + [_MISSING], np.int64)
    indices = pc.fill_null(coded.indices, len(coded.dictionary)).to_numpy(zero_copy_only=False)
    return wrong, codes[indices]


def _booleans(cells: Any) -> NDArray[np.bool_]:
    return columns.are_booleans(pc.fill_null(cells, "")).astype(np.bool_)


def _code(text: str) -> int:
    return hash(text) or 1
