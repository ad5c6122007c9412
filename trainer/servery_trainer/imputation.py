"""What a missing value becomes: fitted on the training part, by the policy of the task."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.data_errors import DatasetInvalidError, Problem
from servery_trainer.preprocessing import FloatArray, NumberFill
from servery_trainer.tasks import Fill

TextFill = Callable[[str, NDArray[np.object_]], str]
"""From the name and the texts of a column, "" for a missing one, to what to put in for these."""


@dataclass(frozen=True, slots=True)
class Imputation:
    """How to fill each type of column."""

    number: NumberFill
    category: TextFill
    boolean: TextFill
    date: TextFill

    @classmethod
    def of(cls, policy: pb.MissingPolicy.ValueType, fill: Fill) -> Self | None:
        """Return what a policy asks for; None if it leaves missing values as they are."""
        if policy == pb.MISSING_POLICY_IMPUTE_MEDIAN:
            return cls(median, text_mode, text_mode, median_date)
        if policy == pb.MISSING_POLICY_IMPUTE_MODE:
            return cls(number_mode, text_mode, text_mode, text_mode)
        if policy == pb.MISSING_POLICY_IMPUTE_CONSTANT:
            return cls(
                lambda *_: np.float32(fill.number),
                lambda *_: fill.text,
                lambda *_: str(fill.boolean).lower(),
                lambda *_: fill.date,
            )
        return None

    def text(self, kind: dataset_pb2.ColumnType.ValueType) -> TextFill:
        """Return how to fill a column of TEXT, BOOLEAN or DATE."""
        known: dict[int, TextFill] = {
            dataset_pb2.COLUMN_TYPE_BOOLEAN: self.boolean,
            dataset_pb2.COLUMN_TYPE_DATE: self.date,
        }
        return known.get(kind, self.category)


def median(column: str, values: FloatArray) -> np.float32:
    """Return the median of the values that are there.

    Raises:
        DatasetInvalidError: None is.
    """
    present = values[~np.isnan(values)]
    if not len(present):
        raise _no_value(column)
    return np.float32(np.median(present.astype(np.float64)))


def number_mode(column: str, values: FloatArray) -> np.float32:
    """Return the most frequent value, the smallest of several.

    Raises:
        DatasetInvalidError: There is none.
    """
    return np.float32(_most_frequent(column, values[~np.isnan(values)].tolist()))


def text_mode(column: str, values: NDArray[np.object_]) -> str:
    """Return the most frequent text, the first in order of several.

    Raises:
        DatasetInvalidError: There is none.
    """
    return str(_most_frequent(column, values[values != ""].tolist()))


def median_date(column: str, values: NDArray[np.object_]) -> str:
    """Return the date in the middle, the earlier of two.

    Raises:
        DatasetInvalidError: There is none.
    """
    present = sorted(values[values != ""].tolist(), key=lambda date: date.replace(" ", "T"))
    if not present:
        raise _no_value(column)
    return str(present[(len(present) - 1) // 2])


def _most_frequent(column: str, values: Iterable[Any]) -> Any:
    counts = Counter(values)
    if not counts:
        raise _no_value(column)
    most = max(counts.values())
    return min(value for value, count in counts.items() if count == most)


def _no_value(column: str) -> DatasetInvalidError:
    return DatasetInvalidError(
        Problem.MISSING_VALUE,
        f"column {column!r} has no value in any row of the training part; leave it out of the"
        " features",
        column=column,
    )
