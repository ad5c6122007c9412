"""What the rows of a data set teach: read from its target columns, kept apart from the inputs.

A target knows nothing of networks; `problems` says how each kind is learned.

Shape suffixes: B rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from servery_trainer.data_errors import DatasetInvalidError, Problem, missing_value, shown
from servery_trainer.split import MIN_ROWS_PER_CLASS


class Target(Protocol):
    """What each row teaches."""

    @property
    def values(self) -> NDArray[Any]:
        """As networks are fitted on them; the first axis is B."""

    @property
    def width(self) -> int:
        """Outputs a network needs to say it."""

    @property
    def strata_B(self) -> NDArray[np.int64]:
        """A number for each row; parts of a split hold rows of one number in proportion."""

    def keep(self, mask_B: NDArray[np.bool_]) -> Self:
        """Return the target of the rows where `mask_B` holds."""

    def check(self) -> None:
        """Refuse rows that nothing can be learned from.

        Raises:
            DatasetInvalidError: What is wrong with them, by column or array.
        """

    def describe(self, rows: NDArray[np.int64]) -> Mapping[str, Any]:
        """Return the statistics of some rows, as entries of `statistics.json`."""


class TargetReader(Protocol):
    """Makes a target of the cells of a table."""

    @property
    def columns(self) -> Sequence[str]:
        """Those it reads."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs that the model will have; no feature may be called so."""

    def add(self, first_row: int, cells: Sequence[Any]) -> None:
        """Read a block.

        Args:
            first_row: Number of its first row.
            cells: One `pyarrow.StringArray` per column; missing cells are null.

        Raises:
            DatasetInvalidError: A cell cannot be a target.
        """

    def target(self, rows: int) -> Target:
        """Return what all blocks hold, of so many rows; called once, after the last."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a data set the target is: in a column or, in an NPZ file, an array."""

    column: str | None = None
    array: str | None = None

    def __str__(self) -> str:
        return f"column {self.column!r}" if self.column else f"array {self.array!r}"

    @property
    def meaning(self) -> str:
        """What an output says that was learned from here."""
        return f"column `{self.column}`" if self.column else f"array `{self.array}`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """One of several classes for each row."""

    values: NDArray[np.int64]
    """[B]: an index of `labels` for each row."""
    labels: tuple[str, ...]
    """The text of each class, in ascending order, by number if all of them are whole numbers."""
    place: Place = Place()

    @classmethod
    def of(cls, texts: Sequence[str], place: Place) -> Self:
        """Number the classes of rows."""
        codes_B, labels = encode_labels(texts)
        return cls(values=codes_B, labels=labels, place=place)

    @property
    def width(self) -> int:
        """See `Target`."""
        return len(self.labels)

    @property
    def strata_B(self) -> NDArray[np.int64]:
        """See `Target`: the classes."""
        return self.values

    def keep(self, mask_B: NDArray[np.bool_]) -> Self:
        """See `Target`."""
        return replace(self, values=self.values[mask_B])

    def check(self) -> None:
        """See `Target`: there must be two classes, each with a row for each part."""
        column, array = self.place.column, self.place.array
        counts = np.bincount(self.values, minlength=len(self.labels))
        if np.count_nonzero(counts) < 2:
            left = " after cleaning" if len(self.labels) > 1 else ""
            raise DatasetInvalidError(
                Problem.ONE_CLASS,
                f"{self.place} holds fewer than two classes{left}; a classifier needs rows of two"
                " or more",
                column=column,
                array=array,
            )
        rare = int(counts.argmin())
        if counts[rare] < MIN_ROWS_PER_CLASS:
            raise DatasetInvalidError(
                Problem.RARE_CLASS,
                f"class {shown(self.labels[rare])!r} of {self.place} has {counts[rare]} rows, but"
                " each part (training, validation, test) needs one; add rows up to"
                f" {MIN_ROWS_PER_CLASS} or remove the class",
                column=column,
                array=array,
            )

    def describe(self, rows: NDArray[np.int64]) -> Mapping[str, Any]:
        """See `Target`: rows of each class."""
        counts = np.bincount(self.values[rows], minlength=len(self.labels))
        return {"labels": dict(zip(self.labels, counts.tolist(), strict=True))}


def require_rows(rows: int) -> None:
    """Refuse fewer rows than there are parts.

    Raises:
        DatasetInvalidError: There are.
    """
    if rows < MIN_ROWS_PER_CLASS:
        raise DatasetInvalidError(
            Problem.TOO_FEW_ROWS,
            f"{rows} rows are left, but each part (training, validation, test) needs one; add rows"
            f" up to {MIN_ROWS_PER_CLASS}",
        )


class ClassReader:
    """Reads the class of each row from one column; see `TargetReader`."""

    outputs = ("label", "probabilities")

    def __init__(self, column: str) -> None:
        self.columns = (column,)
        self._texts: list[str] = []

    def add(self, first_row: int, cells: Sequence[Any]) -> None:
        """See `TargetReader`."""
        (classes,) = cells
        if classes.null_count:
            row = first_row + classes.is_null().to_pylist().index(True)
            raise missing_value(row, self.columns[0], "give it a class or remove the row")
        self._texts += classes.to_pylist()

    def target(self, rows: int) -> Classes:
        """See `TargetReader`."""
        return Classes.of(self._texts, Place(column=self.columns[0]))


def encode_labels(texts: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Number the different texts in ascending order.

    Returns:
        The number of each text, and the texts by number.
    """
    try:
        labels = tuple(sorted(set(texts), key=lambda text: (int(text), text)))
    except ValueError:
        labels = tuple(sorted(set(texts)))
    codes = {label: code for code, label in enumerate(labels)}
    return np.array([codes[text] for text in texts], np.int64), labels
