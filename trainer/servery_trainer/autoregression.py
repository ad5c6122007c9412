"""What a linear model makes of the past of a time series; networks learn what it leaves over.

Shape suffixes: B windows.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from servery_trainer.preprocessing import FloatArray

_STRENGTHS: Final = (*np.logspace(-8, 1, 28), np.inf)
"""Of the ridge, in units of the largest eigenvalue; the last one leaves the naive forecast."""

_CHUNK: Final = 4096


def fit(past_B: NDArray[np.float32], ahead_B: NDArray[np.float32]) -> FloatArray:
    """Fit how much each step counts in the forecast of each step ahead, [step, horizon].

    A ridge regression of the distances from the last step to those ahead on the distances to those
    before, as NLinear (Zeng et al., 2023) has them: the weights of a step ahead sum to 1, so a
    window that is shifted or scaled gives its forecast shifted or scaled. The ridge is the one of
    the least error in generalized cross-validation (Golub, Heath and Wahba, 1979).

    Args:
        past_B: The windows [B, step], in any unit; at least one.
        ahead_B: What came next [B, horizon], in the same unit.
    """
    steps = past_B.shape[1] - 1
    gram, moments = np.zeros((steps, steps)), np.zeros((steps, ahead_B.shape[1]))
    total = 0.0
    for start in range(0, len(past_B), _CHUNK):
        past = past_B[start : start + _CHUNK].astype(np.float64)
        before, ahead = past[:, :-1] - past[:, -1:], ahead_B[start : start + _CHUNK] - past[:, -1:]
        gram += before.T @ before
        moments += before.T @ ahead
        total += float(np.square(ahead).sum())
    weights = _ridge(gram, moments, total, len(past_B))
    return np.vstack([weights, 1 - weights.sum(axis=0)]).astype(np.float32)


def _ridge(
    gram: NDArray[np.float64], moments: NDArray[np.float64], total: float, rows: int
) -> NDArray[np.float64]:
    """Return the weights of the ridge with the least error in generalized cross-validation."""
    eigenvalues, vectors = np.linalg.eigh(gram)
    eigenvalues = eigenvalues.clip(min=0)
    turned = vectors.T @ moments
    squares = np.square(turned).sum(axis=1)
    unit = eigenvalues.max(initial=0) or 1.0

    def error(strength: float) -> float:
        shrunk = 1 / (eigenvalues + strength * unit)
        residual = total - float((squares * shrunk * (2 - eigenvalues * shrunk)).sum())
        free = 1 - float((eigenvalues * shrunk).sum()) / rows
        return residual / free**2 if free > 0 else np.inf

    strength = min(reversed(_STRENGTHS), key=error)
    weights: NDArray[np.float64] = vectors @ (turned / (eigenvalues + strength * unit)[:, None])
    return weights
