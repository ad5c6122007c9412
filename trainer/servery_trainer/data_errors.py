"""The one error of data that cannot be used."""

from enum import StrEnum
from typing import Any

from servery.errors.v1 import error_reason_pb2 as reasons
from servery_rpc.errors import ServeryError


class Problem(StrEnum):
    """What is wrong with the data: the values of `problem` in error_reason.proto."""

    RAGGED_ROW = "RAGGED_ROW"
    EMPTY = "EMPTY"
    MALFORMED = "MALFORMED"
    MISSING_VALUE = "MISSING_VALUE"
    NOT_A_NUMBER = "NOT_A_NUMBER"
    ONE_CLASS = "ONE_CLASS"
    RARE_CLASS = "RARE_CLASS"
    CONSTANT_TARGET = "CONSTANT_TARGET"
    CONSTANT_FEATURES = "CONSTANT_FEATURES"
    TOO_FEW_ROWS = "TOO_FEW_ROWS"
    DUPLICATE_ROW = "DUPLICATE_ROW"
    MISSING_COLUMN = "MISSING_COLUMN"
    DUPLICATE_COLUMN = "DUPLICATE_COLUMN"
    WRONG_TYPE = "WRONG_TYPE"
    OBJECT_ARRAY = "OBJECT_ARRAY"
    WRONG_SHAPE = "WRONG_SHAPE"
    WRONG_DTYPE = "WRONG_DTYPE"
    MISSING_ARRAY = "MISSING_ARRAY"
    TOO_LARGE = "TOO_LARGE"
    PATH_ESCAPE = "PATH_ESCAPE"
    LINK = "LINK"
    NESTED_ARCHIVE = "NESTED_ARCHIVE"
    DUPLICATE_FILE = "DUPLICATE_FILE"
    WRONG_LAYOUT = "WRONG_LAYOUT"


class DatasetInvalidError(ServeryError):
    """The data cannot be used as asked.

    Args:
        problem: What is wrong.
        message: What a person reads: the place, the value, and the way out.
        row: Where, from 1, the header of a CSV file not counted.
        column: Where, in a CSV file.
        array: Where, in a file of arrays.
        file: Where, in an archive.
    """

    reason = reasons.ERROR_REASON_DATASET_INVALID

    def __init__(
        self,
        problem: Problem,
        message: str,
        *,
        row: int | None = None,
        column: str | None = None,
        array: str | None = None,
        file: str | None = None,
    ) -> None:
        places = {"row": row, "column": column, "array": array, "file": file}
        found = {key: shown(place) for key, place in places.items() if place is not None}
        super().__init__(message, problem=problem.value, **found)
        self.problem = problem


def missing_value(row: int, column: str, way_out: str) -> DatasetInvalidError:
    """Say that a cell is empty, and what to do about it."""
    return DatasetInvalidError(
        Problem.MISSING_VALUE,
        f"row {row}, column {column!r} is empty; {way_out}",
        row=row,
        column=column,
    )


def shown(value: Any) -> str:
    """Cut a value of the data to a length that fits into a message."""
    text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
