"""Looks at an uploaded file once, from end to end, and says what is in it."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1.dataset_pb2 import ColumnType
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


def inspect(
    path: Path,
    format: dataset_pb2.DatasetFormat.ValueType,  # noqa: A002
    column_types: Mapping[str, ColumnType.ValueType] | None = None,
) -> DatasetInfo:
    """Read all of a file, in bounded memory whatever its size.

    Args:
        path: The file.
        format: How to read it; not `DATASET_FORMAT_UNSPECIFIED`.
        column_types: Of the columns of a table that are to be what they do not look like.

    Raises:
        DatasetInvalidError: It cannot be read, breaks a limit, holds no rows, ragged rows, unnamed
            or repeated columns, arrays of objects, a cell that is not of the type declared for its
            column, or no column of that name.
    """
    declared = column_types or {}
    if format in arrays.FORMATS:
        if declared:
            raise tables.missing_column(next(iter(declared)), ())
        return _inspect_arrays(path, format)
    return _inspect_table(path, format, declared)


def _inspect_table(
    path: Path,
    format: dataset_pb2.DatasetFormat.ValueType,  # noqa: A002
    declared: Mapping[str, ColumnType.ValueType],
) -> DatasetInfo:
    found = sources.sniff(path)
    if found != format:
        name = dataset_pb2.DatasetFormat.Name(found)
        raise DatasetInvalidError(
            Problem.MALFORMED, f"the file is empty or looks like {name}; give its format as that"
        )
    header = sources.read_header(path)
    for name in declared:
        if name not in header:
            raise tables.missing_column(name, header)
    summaries = [_ColumnSummary(name, declared.get(name)) for name in header]
    rows = 0
    for block in sources.read_blocks(path, header):
        rows += len(block.columns[0])
        for summary, cells in zip(summaries, block.columns, strict=True):
            summary.add(cells, block.first_row)
    if not rows:
        raise tables.no_rows()
    return DatasetInfo(row_count=rows, columns=tuple(summary.column(rows) for summary in summaries))


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
    """Figures of the values of a column, in memory that does not grow with it."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = self._squares = 0.0
        self._minimum, self._maximum = math.inf, -math.inf
        self._hashes = np.empty(0, np.int64)  # hashes instead of values: cells may be long

    def add_range(self, numbers: NDArray[Any]) -> None:
        """Count numbers in, NaN left out.

        Means are merged as of Chan, Golub and LeVeque (1979), without loss of digits.
        """
        numbers = numbers[~np.isnan(numbers)]
        if not numbers.size:
            return
        self._minimum = min(self._minimum, float(numbers.min()))
        self._maximum = max(self._maximum, float(numbers.max()))
        count, mean = self._count + numbers.size, float(numbers.mean(dtype=np.float64))
        apart = mean - self._mean
        self._squares += float(numbers.var(dtype=np.float64)) * numbers.size
        self._squares += apart * apart * self._count * numbers.size / count
        self._mean += apart * numbers.size / count
        self._count = count

    def add_distinct(self, values: Callable[[], Iterable[Any]]) -> None:
        if len(self._hashes) < _MOST_DISTINCT:
            hashes = np.fromiter(map(hash, map(str, values())), np.int64)
            merged = np.sort(np.concatenate([self._hashes, hashes]))
            first = np.append(True, merged[1:] != merged[:-1])
            self._hashes = merged[first][:_MOST_DISTINCT]

    def fill(self, column: dataset_pb2.Column) -> None:
        column.distinct_count = len(self._hashes)
        if self._count and column.type == dataset_pb2.COLUMN_TYPE_NUMERIC:
            column.minimum, column.maximum = self._minimum, self._maximum
            if math.isfinite(self._squares):
                column.mean = self._mean
                column.standard_deviation = math.sqrt(self._squares / self._count)


class _ColumnSummary:
    """What is known of a column of a table so far."""

    def __init__(self, name: str, declared: ColumnType.ValueType | None) -> None:
        self._name = name
        self._declared = declared
        self._present = 0
        self._numeric = self._boolean = self._date = True
        self._values = _Values()

    def add(self, cells: Any, first_row: int) -> None:
        if self._declared:
            columns.require_type(cells, self._declared, first_row, self._name)
        present = pc.drop_null(cells) if cells.null_count else cells
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

    def column(self, rows: int) -> dataset_pb2.Column:
        column = dataset_pb2.Column(
            name=self._name,
            type=self._declared or self._type(),
            declared=self._declared is not None,
            missing_count=rows - self._present,
        )
        self._values.fill(column)
        return column

    def _type(self) -> ColumnType.ValueType:
        if self._present and self._numeric:
            return dataset_pb2.COLUMN_TYPE_NUMERIC
        if self._present and self._boolean:
            return dataset_pb2.COLUMN_TYPE_BOOLEAN
        if self._present and self._date:
            return dataset_pb2.COLUMN_TYPE_DATE
        return dataset_pb2.COLUMN_TYPE_TEXT
