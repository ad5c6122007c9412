"""CSV files, read once in blocks: bounded memory, and every error knows its row.

A row is a record, so a quoted line break does not start one, and blank lines are none. Rows are
numbered from 1, the header not counted. A cell that is empty or blank is missing.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from servery_trainer.data_errors import DatasetInvalidError, Problem, shown

MAX_COLUMNS: Final = 4096
MAX_ROW_BYTES: Final = 4 << 20
"""A record longer than this is refused: nobody's row, but a lost quote or an attack."""

_MAX_NAME: Final = 200
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_NUMBER: Final = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"

# made once: Arrow looks for pandas whenever it turns a Python value into its own
_EMPTY: Final = pa.scalar("")
_NULL: Final = pa.scalar(None, pa.string())


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows that follow each other."""

    first_row: int
    """Number of its first row."""

    columns: tuple[Any, ...]
    """One `pyarrow.StringArray` per column asked for; missing cells are null."""


def read_header(path: Path) -> tuple[str, ...]:
    """Return the names of the columns.

    Raises:
        DatasetInvalidError: The file is empty, or a name is missing, repeated or unusable.
    """
    with path.open("rb") as file:
        start = file.read(MAX_ROW_BYTES)
    text = start.decode("utf-8-sig", errors="surrogateescape")
    try:
        records = csv.reader(io.StringIO(text, newline=""))
        names = tuple(name.strip() for name in next((r for r in records if r), []))
    except csv.Error:
        raise DatasetInvalidError(
            Problem.MALFORMED, "the first line does not name columns; is this a CSV file?"
        ) from None
    if not names:
        raise DatasetInvalidError(Problem.EMPTY, "the file is empty; it must hold a header line")
    if len(names) > MAX_COLUMNS:  # of which the start of the file need not hold all
        raise DatasetInvalidError(
            Problem.TOO_LARGE, f"the file has more than {MAX_COLUMNS} columns; that is the limit"
        )
    check_names(names)
    return names


def check_names(names: Sequence[str]) -> None:
    """Refuse names of columns that cannot be used.

    Raises:
        DatasetInvalidError: One is empty, repeated, too long or no printable text.
    """
    seen: set[str] = set()
    for position, name in enumerate(names, start=1):
        if not name:
            raise DatasetInvalidError(
                Problem.MALFORMED, f"column {position} has no name; give it one in the first line"
            )
        if len(name) > _MAX_NAME or _CONTROL.search(name):
            raise DatasetInvalidError(
                Problem.MALFORMED,
                f"the name of column {position} is not UTF-8 text of at most {_MAX_NAME}"
                " characters without control characters; is this a CSV file?",
            )
        if name in seen:
            raise DatasetInvalidError(
                Problem.DUPLICATE_COLUMN,
                f"two columns are named {name!r}; rename or remove one",
                column=name,
            )
        seen.add(name)


def read_blocks(
    path: Path, header: Sequence[str], columns: Sequence[str] | None = None
) -> Iterator[Block]:
    """Yield the rows of a file with this `header`, in order.

    Args:
        path: The file.
        header: What `read_header` returned for it.
        columns: The columns to yield, in the order wanted; all of them if None.

    Raises:
        DatasetInvalidError: A row is ragged or longer than `MAX_ROW_BYTES`, or a cell is no UTF-8
            text, holds a NUL character or, where the last column is wanted, is never closed.
    """
    wanted = header if columns is None else columns
    ragged: list[Any] = []

    def refuse(row: Any) -> str:
        ragged.append(row)
        return "error"

    try:
        reader = pyarrow.csv.open_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False,  # else Arrow does not number the rows
                block_size=MAX_ROW_BYTES,
                autogenerate_column_names=True,
            ),
            parse_options=pyarrow.csv.ParseOptions(
                newlines_in_values=True, invalid_row_handler=refuse
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                check_utf8=False,
                default_column_type=pa.binary(),
                include_columns=[f"f{header.index(name)}" for name in wanted],
            ),
        )
        row, last_cell = 0, b""  # of the header, which Arrow takes for the first row
        for batch in reader:
            skipped = 1 if row == 0 else 0
            arrays = batch.slice(skipped).columns
            if batch.num_rows > skipped:
                if wanted[-1] == header[-1]:
                    last_cell = arrays[-1][-1].as_py()
                yield Block(
                    row + skipped,
                    tuple(
                        clean(array, row + skipped, name)
                        for name, array in zip(wanted, arrays, strict=True)
                    ),
                )
            row += batch.num_rows
    except pa.ArrowInvalid as error:
        raise _unreadable(error, ragged) from None
    if b"\n" in last_cell and not _ends_quoted(path):
        raise DatasetInvalidError(
            Problem.MALFORMED,
            f"row {row - 1}, column {header[-1]!r} opens a quote that nothing closes, and holds all"
            " the rest of the file; close it, or double it if it is part of the text",
            row=row - 1,
            column=header[-1],
        )


def _ends_quoted(path: Path) -> bool:
    """Tell whether the last cell of a file is closed by a quote that is no part of its text."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - MAX_ROW_BYTES, 0))
        end = file.read().rstrip()
    return (len(end) - len(end.rstrip(b'"'))) % 2 == 1


def _unreadable(error: Exception, ragged: Sequence[Any]) -> DatasetInvalidError:
    if ragged:
        row = ragged[0].number - 1
        expected, actual = ragged[0].expected_columns, ragged[0].actual_columns
        return DatasetInvalidError(
            Problem.RAGGED_ROW,
            f"row {row} has {actual} cells and the header {expected}; check its commas and quotes",
            row=row,
        )
    if "straddl" in str(error):
        return DatasetInvalidError(
            Problem.MALFORMED,
            f"a row is longer than {MAX_ROW_BYTES >> 20} MiB; is a closing quote missing?",
        )
    if "Empty CSV" in str(error):  # a header without a line end
        return no_rows()
    return DatasetInvalidError(Problem.MALFORMED, "the file cannot be read as CSV")


def no_rows() -> DatasetInvalidError:
    """Say that a file names columns and holds nothing else."""
    return DatasetInvalidError(Problem.EMPTY, "the file names columns but holds no rows")


def missing_column(name: str, header: Sequence[str]) -> DatasetInvalidError:
    """Say that a file has no column of a name, and which it has."""
    most = 20
    known = ", ".join(header[:most]) + (", …" if len(header) > most else "") or "no columns"
    return DatasetInvalidError(
        Problem.MISSING_COLUMN,
        f"there is no column {shown(name)!r}; the file has {known}",
        column=name,
    )


def clean(array: Any, first_row: int, column: str) -> Any:
    """Decode and trim the cells of a column, and turn empty ones into nulls.

    Raises:
        DatasetInvalidError: A cell is no UTF-8 text or holds a NUL character.
    """
    array = pc.cast(array, pa.binary())  # from here on, a cast checks the encoding
    try:
        text = pc.cast(array, pa.string())
        has_nul = pc.any(pc.match_substring(text, "\0")).as_py()
    except pa.ArrowInvalid:
        has_nul = True
    if has_nul:
        row = first_row + next(
            i for i, cell in enumerate(array) if not _is_text(cell.as_py() or b"")
        )
        raise DatasetInvalidError(
            Problem.MALFORMED,
            f"row {row}, column {column!r} is not UTF-8 text; save the file as UTF-8",
            row=row,
            column=column,
        )
    text = pc.utf8_trim_whitespace(text)
    return pc.if_else(pc.equal(text, _EMPTY), _NULL, text)


def _is_text(cell: bytes) -> bool:
    try:
        return "\0" not in cell.decode()
    except UnicodeDecodeError:
        return False


def parse_numbers(cells: Any) -> tuple[NDArray[np.float64], int | None]:
    """Read cells as decimal numbers.

    Args:
        cells: A `pyarrow.StringArray`.

    Returns:
        The numbers, NaN for a missing cell; and the index of the first cell that holds no finite
        number, or None. With such a cell, the numbers mean nothing.
    """
    try:
        numbers = pc.cast(cells, pa.float64())
    except pa.ArrowInvalid:
        odd = pc.invert(pc.match_substring_regex(cells, _NUMBER))
        return np.empty(0), pc.index(odd, value=True).as_py()
    values: NDArray[np.float64] = numbers.to_numpy(zero_copy_only=False)
    missing = pc.is_null(cells).to_numpy(zero_copy_only=False)
    bad = ~np.isfinite(values) & ~missing
    return values, int(bad.argmax()) if bad.any() else None


def parse_float32(cells: Any) -> tuple[NDArray[np.float32], int | None]:
    """See `parse_numbers`; also a number beyond float32 is none."""
    numbers, wrong = parse_numbers(cells)
    with np.errstate(over="ignore"):
        narrow = numbers.astype(np.float32)
    if wrong is None and np.isinf(narrow).any():
        wrong = int(np.isinf(narrow).argmax())
    return narrow, wrong


def are_numbers(cells: Any) -> Any:
    """Tell which cells are written as decimal numbers, as a `pyarrow.BooleanArray`."""
    return pc.match_substring_regex(cells, _NUMBER)


def not_a_number(row: int, column: str, value: str) -> DatasetInvalidError:
    """Say that a cell of a numeric column holds something else."""
    return DatasetInvalidError(
        Problem.NOT_A_NUMBER,
        f"row {row}, column {column!r} holds {shown(value)!r}, which is not a number; correct the"
        " cell, empty it, set the type of the column to TEXT, or leave it out of the features",
        row=row,
        column=column,
    )
