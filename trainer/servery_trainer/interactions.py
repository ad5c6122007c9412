"""Who took what, and when, as what rows teach.

Shape suffixes: B rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from servery_trainer.data_errors import DatasetInvalidError, Problem, missing_value
from servery_trainer.quantities import parse_quantities
from servery_trainer.recommendation_task import RecommendationTask
from servery_trainer.split import Split, no_time, parse_times

MIN_INTERACTIONS: Final = 3
"""Of a user whose last two are held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interactions:
    """A user and an item for each row; see `Target`."""

    values: NDArray[np.int64]
    """[B, 2]: the number of the user, from 1, in ascending order of their texts; an index of
    `items`."""
    items: tuple[str, ...]
    """In ascending order."""
    times_B: NDArray[np.float64] | None
    """When each was, in any unit; None: nobody knows."""
    task: RecommendationTask

    @property
    def width(self) -> int:
        """See `Target`: a score for each item."""
        return len(self.items)

    @property
    def user_count(self) -> int:
        """How many users there are."""
        return int(self.values[:, 0].max(initial=0))

    @property
    def strata_B(self) -> NDArray[np.int64]:
        """See `Target`: all alike."""
        return np.zeros(len(self.values), np.int64)

    def keep(self, mask_B: NDArray[np.bool_]) -> Self:
        """See `Target`: users and items without a row are forgotten."""
        _, numbers_B = np.unique(self.values[mask_B, 0], return_inverse=True)
        used, codes_B = np.unique(self.values[mask_B, 1], return_inverse=True)
        return replace(
            self,
            values=np.stack([numbers_B + 1, codes_B], axis=1).astype(np.int64),
            items=tuple(self.items[code] for code in used),
            times_B=None if self.times_B is None else self.times_B[mask_B],
        )

    def check(self) -> None:
        """See `Target`: there must be two users, two items, and a user to judge by."""
        task = self.task
        for column, count, what in (
            (task.user, self.user_count, "users"),
            (task.item, len(self.items), "items"),
        ):
            if count < 2:
                rated = f" in rows rated {task.min_rating:g} or more" if task.rating else ""
                raise DatasetInvalidError(
                    Problem.TOO_FEW_ROWS,
                    f"column {column!r} holds {count} {what}{rated}; recommending needs two or"
                    " more",
                    column=column,
                )
        if np.bincount(self.values[:, 0]).max() < MIN_INTERACTIONS:
            raise DatasetInvalidError(
                Problem.TOO_FEW_ROWS,
                f"no user of column {task.user!r} has {MIN_INTERACTIONS} interactions, so there is"
                " none to hold out; add rows",
                column=task.user,
            )

    def divide(self, seed: int) -> Split:
        """Hold out the last two rows of each user with three or more, the last to judge by.

        Args:
            seed: Decides which rows are last where there are no times.
        """
        users_B, rows = self.values[:, 0], len(self.values)
        order_B = np.random.Generator(np.random.PCG64(seed)).permutation(rows)
        if self.times_B is not None:
            order_B = np.lexsort((np.arange(rows), self.times_B))
        order_B = order_B[np.argsort(users_B[order_B], kind="stable")]
        counts = np.bincount(users_B)
        after_B = counts.cumsum()[users_B[order_B]] - np.arange(rows) - 1  # rows of the same user
        divided_B = counts[users_B[order_B]] >= MIN_INTERACTIONS
        test, validation = (np.sort(order_B[divided_B & (after_B == n)]) for n in (0, 1))
        return Split(
            np.setdiff1d(np.arange(rows), np.concatenate([test, validation])), validation, test
        )

    def describe(self, rows: NDArray[np.int64]) -> Mapping[str, Any]:
        """See `Target`: how many users and items there are."""
        users, items = (len(np.unique(column)) for column in self.values[rows].T)
        return {"interactions": {"users": users, "items": items}}


class InteractionReader:
    """Reads users, items and, if asked for, ratings and times; see `TargetReader`."""

    outputs = ("items", "scores")

    def __init__(self, task: RecommendationTask) -> None:
        optional = (task.rating, task.time)
        self.columns = (task.user, task.item, *(column for column in optional if column))
        self._task = task
        self._texts: dict[str, list[str]] = {column: [] for column in self.columns}
        self._counted: list[NDArray[np.bool_]] = []

    def add(self, first_row: int, cells: Sequence[Any]) -> None:
        """See `TargetReader`."""
        for column, texts in zip(self.columns, cells, strict=True):
            if texts.null_count:
                row = first_row + texts.is_null().to_pylist().index(True)
                raise missing_value(row, column, "fill it in or remove the row")
            if column != self._task.rating:
                self._texts[column] += texts.to_pylist()
                continue
            ratings = parse_quantities(first_row, column, texts)
            self._counted.append(ratings >= np.float32(self._task.min_rating or 0))

    def counted_B(self, rows: int) -> NDArray[np.bool_]:
        """Tell which of so many rows, all there are, are interactions."""
        return np.concatenate(self._counted) if self._task.rating else np.ones(rows, np.bool_)

    def target(self, rows: int) -> Interactions:
        """See `TargetReader`."""
        task = self._task
        numbers_B = np.unique(self._texts[task.user], return_inverse=True)[1] + 1
        items, codes_B = np.unique(self._texts[task.item], return_inverse=True)
        times_B = None
        if task.time:
            texts_B = np.array(self._texts[task.time], np.object_)
            times_B, wrong = parse_times(texts_B)
            if wrong is not None:
                raise no_time(wrong + 1, task.time, texts_B[wrong])
        return Interactions(
            values=np.stack([numbers_B, codes_B], axis=1).astype(np.int64),
            items=tuple(items.tolist()),
            times_B=times_B,
            task=task,
        )
