"""Any number of labels for each row as what it teaches.

Shape suffixes: B rows, K labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from servery_trainer.data_errors import DatasetInvalidError, Problem, missing_value, shown
from servery_trainer.split import MIN_ROWS_PER_CLASS
from servery_trainer.targets import Place, encode_labels, require_rows

MAX_LABELS: Final = 1000

_TRUTH: Final = {"0": 0, "1": 1, "false": 0, "true": 1}
_OUTPUTS: Final = ("probabilities", "predicted")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSets:
    """Which labels apply to each row; see `Target`."""

    values: NDArray[np.uint8]
    """[B, K]: 1 where one applies, else 0."""
    labels: tuple[str, ...]
    places: tuple[Place, ...]
    """That of each label, or the one that has all of them."""

    @property
    def width(self) -> int:
        """See `Target`."""
        return len(self.labels)

    @property
    def strata_B(self) -> NDArray[np.int64]:
        """See `Target`: the rarest label of each row; groups too small for a split are joined."""
        rarest_first = np.argsort(self.values.sum(axis=0, dtype=np.int64), kind="stable")
        ranked_BK = self.values[:, rarest_first]
        strata_B = np.where(ranked_BK.any(axis=1), ranked_BK.argmax(axis=1), self.width)
        counts = np.bincount(strata_B)
        too_small_B = counts[strata_B] < MIN_ROWS_PER_CLASS
        return np.where(too_small_B, counts.argmax(), strata_B)

    def keep(self, mask_B: NDArray[np.bool_]) -> Self:
        """See `Target`."""
        return replace(self, values=self.values[mask_B])

    def check(self) -> None:
        """See `Target`: two labels or more, with and without each of them a row for each part."""
        rows = len(self.values)
        require_rows(rows)
        if self.width < 2:
            found = f"only the label {shown(self.labels[0])!r}" if self.labels else "no label"
            raise DatasetInvalidError(
                Problem.ONE_CLASS,
                f"{self.places[0]} holds {found}; give two labels or more, or learn a single one"
                " as a class",
                column=self.places[0].column,
                array=self.places[0].array,
            )
        with_it = self.values.sum(axis=0, dtype=np.int64)
        rarer = np.minimum(with_it, rows - with_it)
        rare = int(rarer.argmin())
        if rarer[rare] < MIN_ROWS_PER_CLASS:
            place = self.places[rare if len(self.places) > 1 else 0]
            raise DatasetInvalidError(
                Problem.RARE_CLASS if rarer[rare] else Problem.ONE_CLASS,
                f"label {shown(self.labels[rare])!r} of {place} applies to {with_it[rare]} of"
                f" {rows} rows, but each part (training, validation, test) needs a row with it and"
                " one without; add rows or remove the label",
                column=place.column,
                array=place.array,
            )

    def describe(self, rows: NDArray[np.int64]) -> Mapping[str, Any]:
        """See `Target`: rows with each label."""
        counts = self.values[rows].sum(axis=0, dtype=np.int64)
        return {"labels": dict(zip(self.labels, counts.tolist(), strict=True))}


class LabelColumnsReader:
    """Reads one label from each of several columns of truths; see `TargetReader`."""

    outputs = _OUTPUTS

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self._parts: list[NDArray[np.uint8]] = []

    def add(self, first_row: int, cells: Sequence[Any]) -> None:
        """See `TargetReader`."""
        texts = [column.to_pylist() for column in cells]
        for offset, row in enumerate(zip(*texts, strict=True)):
            for column, text in zip(self.columns, row, strict=True):
                if text is None:
                    raise missing_value(first_row + offset, column, "write 0 or 1 there")
                if text.lower() not in _TRUTH:
                    raise DatasetInvalidError(
                        Problem.WRONG_TYPE,
                        f"row {first_row + offset}, column {column!r} holds {shown(text)!r}; a"
                        " label is 0, 1, true or false",
                        row=first_row + offset,
                        column=column,
                    )
        truths = [[_TRUTH[text.lower()] for text in column] for column in texts]
        self._parts.append(np.array(truths, np.uint8).T)

    def target(self, rows: int) -> LabelSets:
        """See `TargetReader`."""
        values = np.ascontiguousarray(np.concatenate(self._parts))
        places = tuple(Place(column=column) for column in self.columns)
        return LabelSets(values=values, labels=self.columns, places=places)


class LabelListReader:
    """Reads the labels of each row from one column that lists them; see `TargetReader`."""

    outputs = _OUTPUTS

    def __init__(self, column: str, separator: str) -> None:
        self.columns = (column,)
        self._separator = separator
        self._sets: list[list[str]] = []

    def add(self, first_row: int, cells: Sequence[Any]) -> None:
        """See `TargetReader`."""
        for offset, cell in enumerate(cells[0].to_pylist()):
            if cell is None:
                way_out = f"list its labels, or write {self._separator!r} alone for none"
                raise missing_value(first_row + offset, self.columns[0], way_out)
            parts = (part.strip() for part in cell.split(self._separator))
            self._sets.append([part for part in parts if part])

    def target(self, rows: int) -> LabelSets:
        """See `TargetReader`."""
        row_B = np.repeat(np.arange(len(self._sets)), [len(labels) for labels in self._sets])
        codes, labels = encode_labels([label for labels in self._sets for label in labels])
        if len(labels) > MAX_LABELS:
            raise DatasetInvalidError(
                Problem.TOO_LARGE,
                f"column {self.columns[0]!r} holds {len(labels)} labels; at most {MAX_LABELS} can"
                " be learned at once",
                column=self.columns[0],
            )
        values = np.zeros((len(self._sets), len(labels)), np.uint8)
        values[row_B, codes] = 1
        places = (Place(column=self.columns[0]),)
        return LabelSets(values=values, labels=labels, places=places)
