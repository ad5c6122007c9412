"""Figures of probabilities: how well they rank, how honest they are, how sure all of that is.

Shape suffixes: B rows, K classes.
"""

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
"""Lower and upper end."""

CALIBRATION_BINS: Final = 15
CONFIDENCE: Final = 0.95
RESAMPLES: Final = 1000
"""Of a bootstrap; fewer of many rows, whose intervals are narrow, but at least 100."""

_ALL_DRAWS: Final = 50_000_000
_MOST_DRAWS: Final = 2_000_000
"""Draws of rows per block: bounds the memory of a bootstrap."""


def roc_curve(
    scores_B: NDArray[np.floating], truth_B: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the false and the true positive rate at each threshold, from none to all rows.

    Args:
        scores_B: Higher for rows that are more likely positive.
        truth_B: Which are; at least one is and one is not.
    """
    positives, negatives = _cumulative(scores_B, truth_B)
    return (
        np.concatenate([[0.0], negatives / negatives[-1]]),
        np.concatenate([[0.0], positives / positives[-1]]),
    )


def roc_auc(scores_B: NDArray[np.floating], truth_B: NDArray[np.bool_]) -> float:
    """Return the chance that a positive row scores higher than a negative one, ties half."""
    false_rate, true_rate = roc_curve(scores_B, truth_B)
    return float(np.trapezoid(true_rate, false_rate))


def average_precision(scores_B: NDArray[np.floating], truth_B: NDArray[np.bool_]) -> float:
    """Return the area under precision over recall, as a sum of steps; see `roc_curve`."""
    positives, negatives = _cumulative(scores_B, truth_B)
    gained = np.diff(positives, prepend=0) / positives[-1]
    return float((gained * positives / (positives + negatives)).sum())


def _cumulative(
    scores_B: NDArray[np.floating], truth_B: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count positive and negative rows at or above each distinct score, the highest first."""
    order_B = np.argsort(-scores_B, kind="stable")
    ranked_B, truth_B = scores_B[order_B], truth_B[order_B]
    last = np.flatnonzero(np.append(np.diff(ranked_B) != 0, [True]))
    positives = truth_B.cumsum()[last]
    return positives, last + 1 - positives


def reliability(
    probabilities_BK: NDArray[np.floating], codes_B: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Group rows by how sure the prediction is, in bins of equal width.

    Returns:
        Of each bin that is not empty: rows, mean probability of the predicted class, share right.
    """
    sure_B = probabilities_BK.max(axis=1).astype(np.float64)
    right_B = probabilities_BK.argmax(axis=1) == codes_B
    bin_B = np.clip(np.ceil(sure_B * CALIBRATION_BINS).astype(np.int64) - 1, 0, None)
    bin_B = np.minimum(bin_B, CALIBRATION_BINS - 1)
    counts = np.bincount(bin_B, minlength=CALIBRATION_BINS)
    used = counts > 0
    counts = counts[used]
    sure = np.bincount(bin_B, sure_B, CALIBRATION_BINS)[used] / counts
    right = np.bincount(bin_B, right_B, CALIBRATION_BINS)[used] / counts
    return counts, sure, right


def calibration_error(probabilities_BK: NDArray[np.floating], codes_B: NDArray[np.int64]) -> float:
    """Return the expected calibration error (Guo et al., 2017): mean |sure - right| over rows."""
    counts, sure, right = reliability(probabilities_BK, codes_B)
    return float((counts * np.abs(sure - right)).sum() / counts.sum())


def wilson(successes: int, trials: int) -> Interval:
    """Return the score interval of a share (Wilson, 1927), which is honest also of none and of all.

    Args:
        successes: How often it happened.
        trials: How often it could have, at least once.
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share, spread = successes / trials, z * z / trials
    centre = share + spread / 2
    reach = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return (centre - reach) / (1 + spread), (centre + reach) / (1 + spread)


def bootstrap(
    values: Mapping[str, NDArray[Any]],
    statistics: Mapping[str, Callable[[Mapping[str, NDArray[Any]]], Any]],
) -> dict[str, Interval]:
    """Return percentile intervals of statistics over rows drawn with replacement.

    Args:
        values: Arrays [B] of the rows, by name.
        statistics: Each from the drawn arrays [draws, B], by name, to [draws].
    """
    rng = np.random.Generator(np.random.PCG64(0))
    rows = len(next(iter(values.values())))
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in statistics}
    left = min(RESAMPLES, max(100, _ALL_DRAWS // rows))
    while left:
        draws = min(left, max(1, _MOST_DRAWS // rows))
        left -= draws
        picked = rng.integers(0, rows, (draws, rows))
        sample = {name: value[picked] for name, value in values.items()}
        for name, statistic in statistics.items():
            found[name].append(statistic(sample))
    tail = 50 * (1 - CONFIDENCE)
    ends = {
        name: np.percentile(np.concatenate(parts), [tail, 100 - tail])
        for name, parts in found.items()
    }
    return {name: (float(lower), float(upper)) for name, (lower, upper) in ends.items()}
