"""Parquet files, read once in blocks, with suspicion: limits while they unpack.

Values become text as a CSV file would hold them: so all tables are learned from alike.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from servery_trainer.data_errors import DatasetInvalidError, Problem
from servery_trainer.members import MAX_DECODED_BYTES
from servery_trainer.tables import MAX_COLUMNS, MAX_ROW_BYTES, Block, check_names, clean

_BLOCK_ROWS: Final = 4096
_RATIO_FREE_BYTES: Final = 256 << 20
_MAX_RATIO: Final = 1000  # columns of few different values do shrink so much
_BLOCK_BYTES: Final = 64 << 20
_MAX_FOOTER_BYTES: Final = 16 << 20


def read_header(path: Path) -> tuple[str, ...]:
    """Return the names of the columns.

    Raises:
        DatasetInvalidError: It is no Parquet file, or a column is nested, binary, unnamed or named
            like another.
    """
    with _open(path) as file:
        schema = file.schema_arrow
    if len(schema) > MAX_COLUMNS:
        raise DatasetInvalidError(
            Problem.TOO_LARGE, f"the file has {len(schema)} columns; the limit is {MAX_COLUMNS}"
        )
    check_names(schema.names)
    for field in schema:
        if not _is_flat(field.type):
            raise DatasetInvalidError(
                Problem.WRONG_TYPE,
                f"column {field.name!r} is of type {field.type}; it must be numbers, text,"
                " booleans, dates or times",
                column=field.name,
            )
    return tuple(schema.names)


def read_blocks(
    path: Path, header: Sequence[str], columns: Sequence[str] | None = None
) -> Iterator[Block]:
    """Yield the rows of a file; see `tables.read_blocks`."""
    wanted = list(header if columns is None else columns)
    row, decoded = 1, 0
    stored = path.stat().st_size
    allowed = min(MAX_DECODED_BYTES, max(_RATIO_FREE_BYTES, _MAX_RATIO * stored))
    with _open(path) as file:
        for batch in file.iter_batches(_BLOCK_ROWS, columns=wanted, use_threads=False):
            step = max(_BLOCK_BYTES // (1 + _longest_text(batch)), 1)
            for start in range(0, batch.num_rows, step):
                block = batch.slice(start, step)
                cells = [clean(_texts(block.column(name)), row, name) for name in wanted]
                decoded += sum(column.nbytes for column in cells)
                if decoded > allowed:
                    raise DatasetInvalidError(
                        Problem.TOO_LARGE,
                        f"the file unpacks to more than {allowed} bytes of text; for a file of"
                        f" {stored} bytes that is the limit",
                    )
                yield Block(row, tuple(cells))
                row += block.num_rows


def _longest_text(batch: Any) -> int:
    """Return its length in bytes, so that a text that is repeated is not unpacked too often."""
    longest = 0
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            size = pc.max(pc.binary_length(column.dictionary)).as_py() or 0
            if size > MAX_ROW_BYTES:
                raise DatasetInvalidError(
                    Problem.TOO_LARGE,
                    f"column {field.name!r} holds a text of {size} bytes; the limit is"
                    f" {MAX_ROW_BYTES >> 20} MiB",
                    column=field.name,
                )
            longest = max(longest, size)
    return longest


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with path.open("rb") as raw:
            raw.seek(-8, 2)
            if int.from_bytes(raw.read(4), "little") > _MAX_FOOTER_BYTES:
                raise _malformed()
        names = [field.name for field in pq.read_schema(path) if _is_text(field.type)]
        # as dictionaries, in which a long text that is repeated takes its space once
        with pq.ParquetFile(path, read_dictionary=names) as file:
            yield file
    except (pa.ArrowException, OSError):
        raise _malformed() from None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_flat(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    known = (
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_decimal,
        pa.types.is_boolean,
        pa.types.is_date,
        pa.types.is_timestamp,
        pa.types.is_null,
    )
    return _is_text(kind) or any(test(kind) for test in known)


def _texts(array: Any) -> Any:
    if pa.types.is_timestamp(array.type):
        return pc.strftime(pc.cast(array, pa.timestamp("s"), safe=False), "%Y-%m-%d %H:%M:%S")
    if pa.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    return pc.cast(array, pa.string())


def _malformed() -> DatasetInvalidError:
    return DatasetInvalidError(
        Problem.MALFORMED, "the file cannot be read as Parquet; write it again"
    )
