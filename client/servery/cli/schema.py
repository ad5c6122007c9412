"""What commands are told about columns."""

from collections.abc import Iterable
from enum import StrEnum

import typer

from servery.trainer.v1 import dataset_pb2 as pb


class ColumnKind(StrEnum):
    """What a column is."""

    NUMERIC = "numeric"
    TEXT = "text"
    BOOLEAN = "boolean"
    DATE = "date"


def column_types(options: Iterable[str] | None) -> dict[str, pb.ColumnType.ValueType]:
    """Parse `COLUMN=KIND` options.

    Raises:
        BadParameter: One is something else.
    """
    return dict(map(_column_type, options or ()))


def _column_type(option: str) -> tuple[str, pb.ColumnType.ValueType]:
    column, _, kind = option.rpartition("=")
    if not column or kind not in list(ColumnKind):
        names = ", ".join(ColumnKind)
        raise typer.BadParameter(f"--type {option}: give COLUMN=KIND, KIND one of {names}")
    return column, pb.ColumnType.Value(f"COLUMN_TYPE_{kind.upper()}")
