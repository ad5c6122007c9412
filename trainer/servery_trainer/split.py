"""Divides rows into parts to train on, to stop early by, and to judge by."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

MIN_ROWS_PER_CLASS: Final = 3
"""One for each part."""


@dataclass(frozen=True, slots=True)
class Split:
    """Three sets of row indices, each ascending, that share none and leave none out."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


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
