"""Which rows are normal, as what they teach: normal rows by themselves, the others nothing.

Shape suffixes: B rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from servery_trainer.data_errors import DatasetInvalidError, Problem, missing_value, shown
from servery_trainer.split import MIN_ROWS_PER_CLASS, Split
from servery_trainer.targets import require_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Normality:
    """Whether each row is an anomaly; see `Target`."""

    values: NDArray[np.int64]
    """[B]: 1 for an anomaly, else 0."""
    column: str
    """What tells; empty: nothing, and all rows count as normal."""
    normal: str
    """What it says of normal rows."""
    false_alarm_rate: float
    """Share of normal rows that may be called anomalies."""

    width = 1

    @property
    def strata_B(self) -> NDArray[np.int64]:
        """See `Target`: normal rows and anomalies."""
        return self.values

    @property
    def anomalous_B(self) -> NDArray[np.bool_]:
        """Which rows are anomalies."""
        anomalous_B: NDArray[np.bool_] = self.values == 1
        return anomalous_B

    @property
    def labelled(self) -> bool:
        """Whether that is known."""
        return bool(self.column)

    def keep(self, mask_B: NDArray[np.bool_]) -> Self:
        """See `Target`."""
        return replace(self, values=self.values[mask_B])

    def check(self) -> None:
        """See `Target`: there must be a normal row for each part."""
        normal = int((self.values == 0).sum())
        if not self.labelled:
            require_rows(normal)
        elif normal < MIN_ROWS_PER_CLASS:
            raise DatasetInvalidError(
                Problem.TOO_FEW_ROWS,
                f"column {self.column!r} says {shown(self.normal)!r} of {normal} rows, but each"
                " part (training, validation, test) needs a normal row; correct what it says of"
                f" normal rows, or add such rows up to {MIN_ROWS_PER_CLASS}",
                column=self.column,
            )

    def place(self, split: Split) -> Split:
        """Turn a division of the normal rows alone into one of all: anomalies are in the test part.

        Args:
            split: Its indices count normal rows only.
        """
        normal, anomalous = (np.flatnonzero(self.values == value) for value in (0, 1))
        return Split(
            normal[split.train],
            normal[split.validation],
            np.sort(np.concatenate([normal[split.test], anomalous])),
        )

    def describe(self, rows: NDArray[np.int64]) -> Mapping[str, Any]:
        """See `Target`: nothing."""
        return {}


class NormalityReader:
    """Reads which rows are normal from one column, or takes all to be; see `TargetReader`.

    Args:
        columns: One, or none.
        normal: What it says of normal rows.
        false_alarm_rate: See `Normality`.
    """

    outputs = ("score", "is_anomaly")

    def __init__(self, columns: Sequence[str], normal: str, false_alarm_rate: float) -> None:
        self.columns = columns
        self._normal = normal
        self._rate = false_alarm_rate
        self._parts: list[NDArray[np.bool_]] = []

    def add(self, first_row: int, cells: Sequence[Any]) -> None:
        """See `TargetReader`."""
        for column, labels in zip(self.columns, cells, strict=True):
            if labels.null_count:
                row = first_row + labels.is_null().to_pylist().index(True)
                rule = f"say {shown(self._normal)!r} or something else, or remove the row"
                raise missing_value(row, column, rule)
            self._parts.append(pc.not_equal(labels, self._normal).to_numpy(zero_copy_only=False))

    def target(self, rows: int) -> Normality:
        """See `TargetReader`."""
        anomalous_B = np.concatenate(self._parts) if self.columns else np.zeros(rows, np.bool_)
        return Normality(
            values=anomalous_B.astype(np.int64),
            column="".join(self.columns),
            normal=self._normal,
            false_alarm_rate=self._rate,
        )
