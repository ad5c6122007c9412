"""JSON Lines, read once in blocks: one flat object per line; blank lines are none.

Rows are numbered from 1. A key that a row lacks is missing there, like `null` and blank text.
"""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import pyarrow as pa

from servery_trainer.data_errors import DatasetInvalidError, Problem, shown
from servery_trainer.tables import MAX_COLUMNS, MAX_ROW_BYTES, Block, check_names, clean

_BLOCK_ROWS: Final = 4096


def read_header(path: Path) -> tuple[str, ...]:
    """Return the keys of all rows, in the order they first occur.

    Raises:
        DatasetInvalidError: A row is no flat JSON object or longer than `MAX_ROW_BYTES`, or a key
            is repeated or unusable.
    """
    names: dict[str, None] = {}
    for row, values in enumerate(_rows(path), start=1):
        if values.keys() <= names.keys():
            continue
        names |= dict.fromkeys(values)
        if len(names) > MAX_COLUMNS:
            raise DatasetInvalidError(
                Problem.TOO_LARGE,
                f"the file has more than {MAX_COLUMNS} columns by row {row}; that is the limit",
                row=row,
            )
    if not names:
        raise DatasetInvalidError(Problem.EMPTY, "the file holds no row with a value")
    check_names(tuple(names))
    return tuple(names)


def read_blocks(
    path: Path, header: Sequence[str], columns: Sequence[str] | None = None
) -> Iterator[Block]:
    """Yield the rows of a file; see `tables.read_blocks`."""
    wanted = header if columns is None else columns
    held: list[dict[str, str | None]] = []
    held_bytes, row = 0, 0
    for row, values in enumerate(_rows(path), start=1):
        held.append(values)
        held_bytes += sum(len(value) for value in values.values() if value)
        if len(held) == _BLOCK_ROWS or held_bytes > MAX_ROW_BYTES:
            yield _block(held, row, wanted)
            held, held_bytes = [], 0
    if held:
        yield _block(held, row, wanted)


def _block(held: Sequence[dict[str, str | None]], last_row: int, names: Sequence[str]) -> Block:
    first_row = last_row - len(held) + 1
    columns = (pa.array([row.get(name) for row in held], pa.string()) for name in names)
    return Block(
        first_row,
        tuple(clean(cells, first_row, name) for cells, name in zip(columns, names, strict=True)),
    )


def _rows(path: Path) -> Iterator[dict[str, str | None]]:
    row = 1
    with path.open("rb") as file:
        while line := file.readline(MAX_ROW_BYTES + 1):
            if len(line) > MAX_ROW_BYTES:
                raise _malformed(row, f"is longer than {MAX_ROW_BYTES >> 20} MiB")
            line = line.removeprefix(b"\xef\xbb\xbf").strip() if row == 1 else line.strip()
            if line:
                yield _parse(line, row)
                row += 1


def _parse(line: bytes, row: int) -> dict[str, str | None]:
    try:
        text = line.decode()
        # numbers stay as they are written: parsing is for those who know the type of the column
        values = json.loads(
            text,
            parse_int=str,
            parse_float=str,
            parse_constant=_refuse_constant,
            object_pairs_hook=partial(_object, row),
        )
    except (ValueError, RecursionError):
        raise _malformed(row, "is not JSON in UTF-8, such as an object without NaN") from None
    if not isinstance(values, dict):
        raise _malformed(row, "is not a JSON object")
    return {name: _cell(value, row, name) for name, value in values.items()}


def _object(row: int, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        raise DatasetInvalidError(
            Problem.DUPLICATE_COLUMN,
            f"row {row} has the key {shown(name)!r} twice; rename or remove one",
            row=row,
            column=name,
        )
    return values


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(text)


def _cell(value: Any, row: int, name: str) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return None
    try:
        value.encode()
    except AttributeError:
        raise DatasetInvalidError(
            Problem.WRONG_TYPE,
            f"row {row}, column {shown(name)!r} holds a list or an object; a cell is a number,"
            " text, true, false or null",
            row=row,
            column=name,
        ) from None
    except UnicodeEncodeError:
        raise _malformed(row, "holds half of a surrogate pair") from None
    return str(value)


def _malformed(row: int, what: str) -> DatasetInvalidError:
    return DatasetInvalidError(
        Problem.MALFORMED, f"row {row} {what}; write one object per line", row=row
    )
