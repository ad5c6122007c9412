"""What the cells of a CSV column are, and how they become values.

Missing cells are null in Arrow, NaN in numbers and "" in texts.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1.dataset_pb2 import ColumnType
from servery_trainer import sources, tables
from servery_trainer.data_errors import DatasetInvalidError, Problem, shown
from servery_trainer.declared import read_types

DATE_PATTERN: Final = (
    "[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    "([T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?)?"
)
"""What a date matches from end to end, in the graph too."""

MAX_TEXT: Final = 32_768
"""Longest text to learn from, in characters."""

_DATE: Final = re.compile(DATE_PATTERN)
_WHOLE_DATE: Final = f"^({DATE_PATTERN})$"
_BOOLEANS: Final = pa.array(["true", "false"])
_NUMBER: Final = dataset_pb2.COLUMN_TYPE_NUMERIC
_TEXT: Final = dataset_pb2.COLUMN_TYPE_TEXT
_BOOLEAN: Final = dataset_pb2.COLUMN_TYPE_BOOLEAN
_DAY: Final = dataset_pb2.COLUMN_TYPE_DATE


def is_date(text: str) -> bool:
    """Tell whether `text` is a date there is: 30 February is none."""
    if not _DATE.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def are_booleans(cells: Any) -> NDArray[np.bool_]:
    """Tell which cells are `true` or `false`, in any case; null is neither."""
    mask = pc.is_in(pc.utf8_lower(cells), value_set=_BOOLEANS)
    found: NDArray[np.bool_] = mask.to_numpy(zero_copy_only=False)
    return found


def are_dates(cells: Any) -> NDArray[np.bool_]:
    """Tell which cells are dates; null is none."""
    coded = pc.dictionary_encode(pc.fill_null(cells, ""))
    valid = pc.match_substring_regex(coded.dictionary, _WHOLE_DATE).to_numpy(zero_copy_only=False)
    valid = valid.astype(np.bool_)
    valid[valid] = [is_date(text) for text in coded.dictionary.filter(pa.array(valid)).to_pylist()]
    found: NDArray[np.bool_] = valid[coded.indices.to_numpy()]
    return found


class Census:
    """Counts what the present cells of a column are, block by block."""

    def __init__(self) -> None:
        self._present = 0
        self._counts = {_NUMBER: 0, _BOOLEAN: 0, _DAY: 0}

    def add(self, cells: Any) -> None:
        """Count the cells of the next block, a `pyarrow.StringArray`."""
        present = pc.drop_null(cells)
        if not len(present):
            return
        self._present += len(present)
        numbers = int(pc.sum(tables.are_numbers(present)).as_py())
        self._counts[_NUMBER] += numbers
        if numbers < len(present):
            self._counts[_BOOLEAN] += int(are_booleans(present).sum())
            self._counts[_DAY] += int(are_dates(present).sum())

    def type(self) -> ColumnType.ValueType:
        """Return what all cells are, or over half of them if those are numbers or dates."""
        if not self._present:
            return _NUMBER
        if self._counts[_BOOLEAN] == self._present:
            return _BOOLEAN
        for kind in (_NUMBER, _DAY):
            if 2 * self._counts[kind] > self._present:
                return kind
        return _TEXT


def infer_types(
    path: Path, header: Sequence[str], columns: Sequence[str]
) -> dict[str, ColumnType.ValueType]:
    """Say what `columns` are: what was declared at the upload, else see `Census.type`.

    Raises:
        DatasetInvalidError: See `tables.read_blocks`.
    """
    declared = read_types(path)
    found = {name: Census() for name in columns if name not in declared}
    for block in sources.read_blocks(path, header, list(found)) if found else ():
        for census, cells in zip(found.values(), block.columns, strict=True):
            census.add(cells)
    return declared | {name: census.type() for name, census in found.items()}


def first_wrong(cells: Any, kind: ColumnType.ValueType) -> int | None:
    """Return the index of the first present cell that is not of a type, if there is one.

    Args:
        cells: A `pyarrow.StringArray`.
        kind: TEXT, BOOLEAN or DATE. A TEXT is wrong if longer than `MAX_TEXT`.
    """
    if kind == _TEXT:
        right = pc.less_equal(pc.utf8_length(cells), MAX_TEXT).to_numpy(zero_copy_only=False)
    else:
        right = are_booleans(cells) if kind == _BOOLEAN else are_dates(cells)
    missing = pc.is_null(cells).to_numpy(zero_copy_only=False)
    wrong = ~(right.astype(np.bool_) | missing)
    return int(wrong.argmax()) if wrong.any() else None


def texts(cells: Any, kind: ColumnType.ValueType) -> NDArray[np.object_]:
    """Return cells as strings, `""` for a missing one, BOOLEAN ones in lower case.

    Equal strings are one object: a column takes 8 bytes a row beside its different values.
    """
    if kind == _BOOLEAN:
        cells = pc.utf8_lower(cells)
    coded = pc.dictionary_encode(pc.fill_null(cells, ""))
    values = np.array(coded.dictionary.to_pylist(), np.object_)
    found: NDArray[np.object_] = values[coded.indices.to_numpy()]
    return found


def require_type(cells: Any, kind: ColumnType.ValueType, first_row: int, column: str) -> None:
    """Refuse cells of a column that are not of its type.

    Args:
        cells: A `pyarrow.StringArray`.
        kind: What they are to be.
        first_row: Number of the row of the first.
        column: Its name.

    Raises:
        DatasetInvalidError: One is something else.
    """
    wrong = tables.parse_numbers(cells)[1] if kind == _NUMBER else first_wrong(cells, kind)
    if wrong is None:
        return
    row, value = first_row + wrong, cells[wrong].as_py()
    if kind == _NUMBER:
        raise tables.not_a_number(row, column, value)
    raise wrong_type(row, column, value, kind)


def wrong_type(
    row: int, column: str, value: str, kind: ColumnType.ValueType
) -> DatasetInvalidError:
    """Say that a cell is not what its column is."""
    if kind == _TEXT:
        return DatasetInvalidError(
            Problem.TOO_LARGE,
            f"row {row}, column {column!r} holds a text of {len(value)} characters; the limit is"
            f" {MAX_TEXT}",
            row=row,
            column=column,
        )
    expected: Mapping[int, str] = {_BOOLEAN: "true or false", _DAY: "a date such as 2024-02-29"}
    return DatasetInvalidError(
        Problem.WRONG_TYPE,
        f"row {row}, column {column!r} holds {shown(value)!r}, which is not {expected[kind]};"
        " correct the cell, empty it, or set the type of the column to TEXT",
        row=row,
        column=column,
    )
