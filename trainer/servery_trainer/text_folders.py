"""Archives of text files in one folder per class, read as a table of `text` and `label`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from servery_trainer.data_errors import DatasetInvalidError, Problem, shown
from servery_trainer.folders import labelled
from servery_trainer.tables import MAX_ROW_BYTES, Block, clean

_COLUMNS: Final = ("text", "label")
_BLOCK_BYTES: Final = 4 << 20
_BLOCK_ROWS: Final = 4096


def read_header(path: Path) -> tuple[str, ...]:
    """Return the names of the columns, `text` and `label`."""
    del path
    return _COLUMNS


def read_blocks(
    path: Path, header: Sequence[str], columns: Sequence[str] | None = None
) -> Iterator[Block]:
    """Yield the rows of a file; see `tables.read_blocks`."""
    wanted = header if columns is None else columns
    held: list[tuple[str, str]] = []
    held_bytes, row = 0, 1
    for label, member in labelled(path):
        content = member.read(MAX_ROW_BYTES)
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise DatasetInvalidError(
                Problem.MALFORMED,
                f"the file {shown(member.name)!r} is not UTF-8 text; save it as UTF-8",
                file=member.name,
            )
        held.append((text, label))
        held_bytes += len(content)
        if len(held) == _BLOCK_ROWS or held_bytes >= _BLOCK_BYTES:
            yield _block(held, row, wanted)
            row += len(held)
            held, held_bytes = [], 0
    if held:
        yield _block(held, row, wanted)


def _block(held: Sequence[tuple[str, str]], first_row: int, wanted: Sequence[str]) -> Block:
    cells = dict(zip(_COLUMNS, zip(*held, strict=True), strict=True))
    return Block(
        first_row,
        tuple(clean(pa.array(cells[name], pa.string()), first_row, name) for name in wanted),
    )
