"""A number for each row as what it teaches.

Shape suffixes: B rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from servery_trainer import tables
from servery_trainer.data_errors import DatasetInvalidError, Problem, missing_value, shown
from servery_trainer.targets import Place, require_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantities:
    """A number for each row; see `Target`."""

    values: NDArray[np.float32]
    """[B, 1], finite."""
    place: Place
    """Where they come from."""

    width = 1

    @property
    def strata_B(self) -> NDArray[np.int64]:
        """See `Target`: all alike."""
        return np.zeros(len(self.values), np.int64)

    def keep(self, mask_B: NDArray[np.bool_]) -> Self:
        """See `Target`."""
        return replace(self, values=self.values[mask_B])

    def check(self) -> None:
        """See `Target`: there must be a row for each part, and two different numbers."""
        require_rows(len(self.values))
        if self.values.min() == self.values.max():
            raise DatasetInvalidError(
                Problem.CONSTANT_TARGET,
                f"{self.place} holds {self.values[0, 0]:g} in all rows; there is nothing to learn",
                column=self.place.column,
                array=self.place.array,
            )

    def describe(self, rows: NDArray[np.int64]) -> Mapping[str, Any]:
        """See `Target`."""
        return describe_quantities(self.values[rows])


def describe_quantities(values: NDArray[np.float32]) -> Mapping[str, Any]:
    """Return the statistics of numbers for `Target.describe`."""
    exact = values.astype(np.float64)
    return {
        "target": {
            "mean": float(exact.mean()),
            "standard_deviation": float(exact.std()),
            "minimum": float(exact.min()),
            "maximum": float(exact.max()),
        }
    }


class QuantityReader:
    """Reads the number of each row from one column; see `TargetReader`."""

    outputs: tuple[str, ...] = ("value",)

    def __init__(self, column: str) -> None:
        self.columns = (column,)
        self._parts: list[NDArray[np.float32]] = []

    def add(self, first_row: int, cells: Sequence[Any]) -> None:
        """See `TargetReader`."""
        self._parts.append(parse_quantities(first_row, self.columns[0], cells[0]))

    def target(self, rows: int) -> Quantities:
        """See `TargetReader`."""
        values = np.concatenate(self._parts)[:, None]
        return Quantities(values=values, place=Place(column=self.columns[0]))


def parse_quantities(first_row: int, column: str, cells: Any) -> NDArray[np.float32]:
    """Return the numbers of a column of a block.

    Args:
        first_row: Number of its first row.
        column: Its name.
        cells: A `pyarrow.StringArray`; missing cells are null.

    Raises:
        DatasetInvalidError: A cell is empty or no finite number.
    """
    numbers, wrong = tables.parse_float32(cells)
    if wrong is not None:
        row, value = first_row + wrong, shown(cells[wrong].as_py())
        raise DatasetInvalidError(
            Problem.NOT_A_NUMBER,
            f"row {row}, column {column!r} holds {value!r}, which is not a finite number of 32"
            " bits; correct it or remove the row",
            row=row,
            column=column,
        )
    missing_B = np.isnan(numbers)
    if missing_B.any():
        row = first_row + int(missing_B.argmax())
        raise missing_value(row, column, "give it a number or remove the row")
    return numbers
