"""Looks at an uploaded file once, from end to end, and says what is in it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from servery.trainer.v1 import dataset_pb2
from servery_trainer import arrays, columns, sources, tables
from servery_trainer.archives import ArrayHeader
from servery_trainer.data_errors import DatasetInvalidError, Problem

_MOST_DISTINCT: Final = 10_000
_ARRAY_TYPES: Final = {
    "b": dataset_pb2.COLUMN_TYPE_BOOLEAN,
    "U": dataset_pb2.COLUMN_TYPE_TEXT,
    "S": dataset_pb2.COLUMN_TYPE_TEXT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """What a file holds."""

    row_count: int
    columns: tuple[dataset_pb2.Column, ...]
    """The columns or arrays, in the order of the file."""


def inspect(path: Path, format: dataset_pb2.DatasetFormat.ValueType) -> DatasetInfo:  # noqa: A002
    """Read all of a file, in bounded memory whatever its size.

    Args:
        path: The file.
        format: How to read it; not `DATASET_FORMAT_UNSPECIFIED`.

    Raises:
        DatasetInvalidError: It cannot be read, breaks a limit, holds no rows, ragged rows, unnamed
            or repeated columns, or arrays of objects.
    """
    readers: dict[int, Callable[[Path], DatasetInfo]] = {
        **{table: partial(_inspect_table, format=table) for table in sources.FORMATS},
        **{kind: partial(_inspect_arrays, format=kind) for kind in arrays.FORMATS},
    }
    return readers[format](path)


def _inspect_table(path: Path, format: int) -> DatasetInfo:  # noqa: A002
    found = sources.sniff(path)
    if found != format:
        name = dataset_pb2.DatasetFormat.Name(found)
        raise DatasetInvalidError(
            Problem.MALFORMED, f"the file is empty or looks like {name}; give its format as that"
        )
    header = sources.read_header(path)
    summaries = [_ColumnSummary() for _ in header]
    rows = 0
    for block in sources.read_blocks(path, header):
        rows += len(block.columns[0])
        for summary, cells in zip(summaries, block.columns, strict=True):
            summary.add(cells)
    if not rows:
        raise tables.no_rows()
    listed = (summary.column(name, rows) for name, summary in zip(header, summaries, strict=True))
    return DatasetInfo(row_count=rows, columns=tuple(listed))


def _inspect_arrays(path: Path, format: dataset_pb2.DatasetFormat.ValueType) -> DatasetInfo:  # noqa: A002
    with arrays.open_arrays(path, format=format) as archive:
        found = tuple(
            _array_column(header, archive.chunks(name)) for name, header in archive.headers.items()
        )
        row_count = next(iter(archive.headers.values())).shape[0]
    return DatasetInfo(row_count=row_count, columns=found)


def _array_column(header: ArrayHeader, chunks: Iterable[NDArray[Any]]) -> dataset_pb2.Column:
    values, numeric = _Values(), header.dtype.kind in "iuf"
    for chunk in chunks:
        if numeric:
            values.add_range(chunk)
        values.add_distinct(partial(np.unique, chunk))
    column = dataset_pb2.Column(
        name=header.name,
        type=_ARRAY_TYPES.get(header.dtype.kind, dataset_pb2.COLUMN_TYPE_NUMERIC),
        shape=header.shape,
        dtype=header.dtype.name,
    )
    values.fill(column)
    return column


class _Values:
    """Range and number of different values of a column, in memory that does not grow with it."""

    def __init__(self) -> None:
        self._minimum: float | None = None
        self._maximum: float | None = None
        self._hashes = np.empty(0, np.int64)  # hashes instead of values: cells may be long

    def add_range(self, numbers: NDArray[Any]) -> None:
        numbers = numbers[~np.isnan(numbers)]
        if numbers.size:
            low, high = float(numbers.min()), float(numbers.max())
            self._minimum = low if self._minimum is None else min(low, self._minimum)
            self._maximum = high if self._maximum is None else max(high, self._maximum)

    def add_distinct(self, values: Callable[[], Iterable[Any]]) -> None:
        if len(self._hashes) < _MOST_DISTINCT:
            hashes = np.fromiter(map(hash, map(str, values())), np.int64)
            merged = np.sort(np.concatenate([self._hashes, hashes]))
            first = np.append(True, merged[1:] != merged[:-1])
            self._hashes = merged[first][:_MOST_DISTINCT]

    def fill(self, column: dataset_pb2.Column) -> None:
        column.distinct_count = len(self._hashes)
        if self._minimum is not None and self._maximum is not None:
            column.minimum, column.maximum = self._minimum, self._maximum


class _ColumnSummary:
    """What is known of a CSV column so far."""

    def __init__(self) -> None:
        self._present = 0
        self._numeric = True
        self._boolean = True
        self._date = True
        self._values = _Values()

    def add(self, cells: Any) -> None:
        present = pc.drop_null(cells)
        if not len(present):
            return
        self._present += len(present)
        if self._numeric:
            numbers, bad = tables.parse_numbers(present)
            self._numeric = bad is None
            if self._numeric:
                self._values.add_range(numbers)
        if self._boolean:
            self._boolean = bool(columns.are_booleans(present).all())
        if self._date:
            self._date = bool(columns.are_dates(present).all())
        self._values.add_distinct(lambda: pc.unique(present).to_pylist())

    def column(self, name: str, rows: int) -> dataset_pb2.Column:
        column = dataset_pb2.Column(name=name, missing_count=rows - self._present)
        self._values.fill(column)
        if self._present and self._numeric:
            column.type = dataset_pb2.COLUMN_TYPE_NUMERIC
            return column
        column.ClearField("minimum")
        column.ClearField("maximum")
        column.type = dataset_pb2.COLUMN_TYPE_TEXT
        if self._present and self._boolean:
            column.type = dataset_pb2.COLUMN_TYPE_BOOLEAN
        elif self._present and self._date:
            column.type = dataset_pb2.COLUMN_TYPE_DATE
        return column
