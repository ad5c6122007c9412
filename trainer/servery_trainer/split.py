"""Divides rows into parts to train on, to stop early by, and to judge by.

The same rows, policy and seed give the same parts: nothing else decides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from servery.trainer.v1 import dataset_pb2, training_pb2
from servery_rpc.errors import FieldInvalidError
from servery_trainer.columns import is_date
from servery_trainer.data_errors import DatasetInvalidError, Problem, missing_value, shown
from servery_trainer.fields import known

MIN_ROWS_PER_CLASS: Final = 3
"""One for each part."""

_PARTS: Final = ("training", "validation", "test")
_DEFAULT_FRACTION: Final = 0.15


@dataclass(frozen=True, slots=True)
class Split:
    """Three sets of row indices, each ascending, that share none.

    They leave none out, but for windows of time series that reach from one part into the next.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPolicy:
    """How to divide rows."""

    method: dataset_pb2.SplitMethod.ValueType = dataset_pb2.SPLIT_METHOD_STRATIFIED
    column: str = ""
    """That of the groups or times; empty with STRATIFIED."""
    validation_fraction: float = _DEFAULT_FRACTION
    test_fraction: float = _DEFAULT_FRACTION
    seed: int | None = None
    """None: that of the training."""

    @classmethod
    def parse(cls, split: training_pb2.Split, path: str) -> Self:
        """Parse the message at `path`.

        Raises:
            FieldInvalidError: A field is malformed or out of its range.
        """
        method = known(split.method, dataset_pb2.SplitMethod, f"{path}.method")
        named = bool(split.column)
        if named == (method == dataset_pb2.SPLIT_METHOD_STRATIFIED):
            rule = "be empty, or the method GROUP or TIME" if named else "name the column"
            raise FieldInvalidError(f"{path}.column", split.column, rule)
        validation = parse_fraction(split, "validation_fraction", f"{path}.")
        test = parse_fraction(split, "test_fraction", f"{path}.")
        if validation + test >= 1:
            rule = "leave rows to train on: both fractions together must be below 1"
            raise FieldInvalidError(f"{path}.test_fraction", test, rule)
        return cls(
            method=dataset_pb2.SplitMethod.ValueType(method),
            column=split.column,
            validation_fraction=validation,
            test_fraction=test,
            seed=split.seed if split.HasField("seed") else None,
        )

    def to_proto(self) -> training_pb2.Split:
        """Render it; `parse` gives an equal value back."""
        return training_pb2.Split(
            method=self.method,
            column=self.column,
            validation_fraction=self.validation_fraction,
            test_fraction=self.test_fraction,
            seed=self.seed,
        )

    def divide(
        self,
        strata_B: NDArray[np.int64],
        keys_B: NDArray[np.object_] | None,
        numbers_B: NDArray[np.int64],
        seed: int,
    ) -> Split:
        """Divide rows.

        Args:
            strata_B: The class of each row, or another number that all parts must have rows of.
            keys_B: The text of each row in `column`; None with STRATIFIED.
            numbers_B: The number of each row in the file, for messages.
            seed: What to use if the policy has none of its own.

        Raises:
            DatasetInvalidError: `column` lacks a value, has too few, or is no time; or a part would
                be without rows of a class.
        """
        seed = seed if self.seed is None else self.seed
        fractions = {
            "validation_fraction": self.validation_fraction,
            "test_fraction": self.test_fraction,
        }
        if keys_B is None:
            return split_rows(strata_B, **fractions, seed=seed)
        missing_B = keys_B == ""
        if missing_B.any():
            row = int(numbers_B[missing_B.argmax()])
            raise missing_value(row, self.column, "rows are divided by it; give it a value")
        if self.method == dataset_pb2.SPLIT_METHOD_GROUP:
            _, codes_B = np.unique(keys_B.astype(str), return_inverse=True)
            split = split_groups(codes_B, **fractions, seed=seed, column=self.column)
        else:
            times_B, wrong = parse_times(keys_B)
            if wrong is not None:
                raise no_time(int(numbers_B[wrong]), self.column, keys_B[wrong])
            split = split_times(times_B, **fractions, column=self.column)
        _require_strata(split, strata_B, numbers_B, self.column)
        return split

    def divide_spans(self, spans: NDArray[np.float64]) -> Split:
        """Divide windows by the times that they forecast; the fractions are of these.

        Args:
            spans: The first and the last time of each, [B, 2].

        Raises:
            DatasetInvalidError: A part would be without any.
        """
        first_B, last_B = spans.T
        times = np.unique(first_B)
        test = max(1, round(len(times) * self.test_fraction))
        held_out = test + max(1, round(len(times) * self.validation_fraction))
        validation_from, test_from = times[-min(held_out, len(times))], times[-test]
        split = Split(
            np.flatnonzero(last_B < validation_from),
            np.flatnonzero((first_B >= validation_from) & (last_B < test_from)),
            np.flatnonzero(first_B >= test_from),
        )
        for part, rows in zip(_PARTS, (split.train, split.validation, split.test), strict=True):
            if not len(rows):
                raise DatasetInvalidError(
                    Problem.TOO_FEW_ROWS,
                    f"the {part} part has no window whose horizon lies within it; add rows, give it"
                    " a larger share (split), or make the window or the horizon smaller",
                )
        return split


def parse_fraction(
    message: training_pb2.Split | dataset_pb2.ValidateDatasetRequest,
    name: Literal["validation_fraction", "test_fraction"],
    prefix: str = "",
) -> float:
    """Return a fraction of a message, or the default; `prefix` comes before its name in errors.

    Raises:
        FieldInvalidError: It is out of its range.
    """
    fraction = getattr(message, name) if message.HasField(name) else _DEFAULT_FRACTION
    if not 0 < fraction <= 0.5:
        raise FieldInvalidError(f"{prefix}{name}", fraction, "be over 0 and at most 0.5")
    return float(fraction)


def split_rows(
    codes_B: NDArray[np.int64], *, validation_fraction: float, test_fraction: float, seed: int
) -> Split:
    """Divide rows at random, each class in the same proportion and present in each part.

    Args:
        codes_B: The class of each row; `MIN_ROWS_PER_CLASS` rows or more of each.
        validation_fraction: Share of each class for early stopping.
        test_fraction: Share of each class for the final metrics; the rest is trained on.
        seed: The same seed divides the same rows alike.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    parts: tuple[list[NDArray[np.int64]], ...] = ([], [], [])
    for code in np.unique(codes_B):
        rows = rng.permutation(np.flatnonzero(codes_B == code))
        validation = min(max(1, round(len(rows) * validation_fraction)), len(rows) - 2)
        test = min(max(1, round(len(rows) * test_fraction)), len(rows) - validation - 1)
        parts[0].append(rows[validation + test :])
        parts[1].append(rows[:validation])
        parts[2].append(rows[validation : validation + test])
    train, held_out, judged = (np.sort(np.concatenate(part)) for part in parts)
    return Split(train, held_out, judged)


def split_groups(
    groups_B: NDArray[np.int64],
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    column: str,
) -> Split:
    """Divide rows at random, those of a group together.

    Groups come in random order; each goes where most rows are still wanted.

    Raises:
        DatasetInvalidError: There are fewer groups than parts.
    """
    sizes = np.bincount(groups_B)
    _require_three(len(sizes), column)
    wanted = len(groups_B) * np.array(
        [1 - validation_fraction - test_fraction, validation_fraction, test_fraction]
    )
    part_of = np.full(len(sizes), -1)
    empty = {0, 1, 2}
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(sizes))
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        part = min(empty) if left == len(empty) else int(wanted.argmax())
        part_of[group] = part
        wanted[part] -= sizes[group]
        empty.discard(part)
    return _by_part(part_of[groups_B])


def split_times(
    times_B: NDArray[np.float64], *, validation_fraction: float, test_fraction: float, column: str
) -> Split:
    """Divide rows by time: the earliest to train on, the latest to judge by, equal ones together.

    Raises:
        DatasetInvalidError: There are fewer different times than parts.
    """
    times, codes_B, counts = np.unique(times_B, return_inverse=True, return_counts=True)
    _require_three(len(times), column)
    until = counts.cumsum()
    rows = len(times_B)
    train = rows * (1 - validation_fraction - test_fraction)
    last_train = min(int(np.searchsorted(until, round(train))), len(times) - 3)
    last_validation = int(np.searchsorted(until, round(rows * (1 - test_fraction))))
    last_validation = min(max(last_validation, last_train + 1), len(times) - 2)
    parts = (np.arange(len(times)) > last_train).astype(int)
    parts += np.arange(len(times)) > last_validation
    return _by_part(parts[codes_B])


def parse_times(texts_B: NDArray[np.object_]) -> tuple[NDArray[np.float64], int | None]:
    """Read texts as numbers, or else as days or times.

    Returns:
        Numbers in their order; and the index of the first text that is neither, or None. With such
        a text, the numbers mean nothing.
    """
    first_wrong = 0
    readers: tuple[Callable[[str], float], ...] = (_number, _seconds)
    for read in readers:
        times = dict.fromkeys(texts_B.tolist(), 0.0)
        for text in times:
            try:
                times[text] = read(text)
            except ValueError:
                first_wrong = max(first_wrong, int((texts_B == text).argmax()))
                break
        else:
            return np.array([times[text] for text in texts_B.tolist()], np.float64), None
    return np.empty(0), first_wrong


def no_time(row: int, column: str, value: str) -> DatasetInvalidError:
    """Say that a value of the column of the times is none."""
    return DatasetInvalidError(
        Problem.WRONG_TYPE,
        f"row {row}, column {column!r} holds {shown(value)!r}, but it must hold times: numbers"
        " only, or dates such as 2024-02-29 only",
        row=row,
        column=column,
    )


def _number(text: str) -> float:
    number = float(text)
    if not np.isfinite(number):
        raise ValueError(text)
    return number


def _seconds(text: str) -> float:
    if not is_date(text):
        raise ValueError(text)
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def _by_part(part_B: NDArray[np.int64]) -> Split:
    train, validation, test = (np.flatnonzero(part_B == part) for part in range(3))
    return Split(train, validation, test)


def _require_three(count: int, column: str) -> None:
    if count < len(_PARTS):
        raise DatasetInvalidError(
            Problem.TOO_FEW_ROWS,
            f"column {column!r} has {count} different values, but each part (training, validation,"
            " test) needs one; divide the rows by another column",
            column=column,
        )


def _require_strata(
    split: Split, strata_B: NDArray[np.int64], numbers_B: NDArray[np.int64], column: str
) -> None:
    for part, rows in zip(_PARTS, (split.train, split.validation, split.test), strict=True):
        absent_B = ~np.isin(strata_B, strata_B[rows])
        if absent_B.any():
            row = int(numbers_B[absent_B.argmax()])
            raise DatasetInvalidError(
                Problem.RARE_CLASS,
                f"divided by column {column!r}, the {part} part has no row of the class of row"
                f" {row}; choose another seed, fractions or column, or add rows",
                row=row,
                column=column,
            )
