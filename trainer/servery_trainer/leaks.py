"""Tells columns that give the target away: how well each alone predicts rows it was not fitted on.

A column is cut into values (categories, or 32 quantiles of numbers) and a missing one; for each,
the answer is what is most frequent, or the mean, on half of the rows; the other half judges.

Shape suffixes: B rows.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servery_trainer.examined import Column

GIVEN_AWAY: Final = 0.97
"""Scores over this are too good for one honest column."""

MIN_ROWS: Final = 100

_BINS: Final = 32
_MOST_CLASSES: Final = 200


def score(column: Column, target: Column) -> float:
    """Return how well `column` alone tells `target`: 0 for no better than guessing, to 1.

    For classes it is the balanced accuracy, for numbers R², rescaled to that range; 0 also if there
    are fewer than `MIN_ROWS` rows with a target.
    """
    known = np.flatnonzero(target.present_B)
    if len(known) < MIN_ROWS:
        return 0.0
    cut = _cut(column)[known]
    fitted_B = np.random.Generator(np.random.PCG64(0)).permutation(len(known)) % 2 == 0
    if target.numeric and len(np.unique(target.values_B[known])) > _BINS:
        return _numbers(cut, target.values_B[known], fitted_B)
    _, codes = np.unique(target.values_B[known], return_inverse=True)
    return _classes(cut, codes, fitted_B)


def _cut(column: Column) -> NDArray[np.int64]:
    values = column.values_B
    if column.numeric and column.present_B.any():
        edges = np.unique(np.nanpercentile(values, np.linspace(0, 100, _BINS + 1)[1:-1]))
        cut = np.searchsorted(edges, values, side="left")
        return np.where(column.present_B, cut, _BINS + 1)
    _, codes = np.unique(column.bits_B, return_inverse=True)
    return codes


def _classes(cut_B: NDArray[Any], codes_B: NDArray[Any], fitted_B: NDArray[np.bool_]) -> float:
    classes = int(codes_B.max()) + 1
    if not 2 <= classes <= _MOST_CLASSES:
        return 0.0
    sizes = np.bincount(codes_B[fitted_B], minlength=classes)
    pairs, counts = np.unique(cut_B[fitted_B] * classes + codes_B[fitted_B], return_counts=True)
    # by share of the class: else the answer for rare classes would never be theirs
    order = np.argsort(counts / sizes[pairs % classes], kind="stable")
    answer = np.full(int(cut_B.max()) + 1, -1)
    answer[pairs[order] // classes] = pairs[order] % classes
    right_B = answer[cut_B[~fitted_B]] == codes_B[~fitted_B]
    judged = np.bincount(codes_B[~fitted_B], minlength=classes)
    recall = np.bincount(codes_B[~fitted_B], right_B, classes)[judged > 0] / judged[judged > 0]
    return max(0.0, float((recall.mean() - 1 / classes) / (1 - 1 / classes)))


def _numbers(
    cut_B: NDArray[Any], numbers_B: NDArray[np.float64], fitted_B: NDArray[np.bool_]
) -> float:
    bins = int(cut_B.max()) + 1
    counts = np.bincount(cut_B[fitted_B], minlength=bins)
    sums = np.bincount(cut_B[fitted_B], numbers_B[fitted_B], bins)
    overall = numbers_B[fitted_B].mean()
    means = np.where(counts > 0, sums / np.maximum(counts, 1), overall)
    judged = numbers_B[~fitted_B]
    spread = float(((judged - overall) ** 2).sum())
    missed = float(((judged - means[cut_B[~fitted_B]]) ** 2).sum())
    return max(0.0, 1 - missed / spread) if spread else 0.0
