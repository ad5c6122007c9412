"""How much each network of an ensemble counts, learned from rows that it was not fitted on.

Stacked generalization (Wolpert, 1992) in the linear form of Breiman's stacked regressions (1996): a
second level answers with a weighted sum of what the networks answer, with weights of 0 or more, as
he found them to be needed. Here they add up to 1 too, so that probabilities stay probabilities.

Shape suffixes: B rows.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from servery_trainer.label_sets import LabelSets
from servery_trainer.preprocessing import FloatArray
from servery_trainer.quantities import Quantities
from servery_trainer.targets import Classes, Target
from servery_trainer.windows import Horizons

_STEPS: Final = 10_000
"""Of the search for the best weights; what is left to gain after them is below any noise."""


def right_answers(target: Target, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the answers that networks would give to rows if they knew: probabilities or numbers.

    Args:
        target: Of all rows; of classes, labels or numbers.
        rows: Which ones.
    """
    match target:
        case Classes(values=codes_B):
            return np.eye(target.width)[codes_B[rows]]
        case Quantities() | Horizons() | LabelSets():
            return target.values[rows].astype(np.float64)
        case _:
            raise TypeError(f"no answer to {type(target).__name__} is the right one")


def fit_weights(answers: Sequence[FloatArray], right: NDArray[np.float64]) -> FloatArray:
    """Return the weight of each with the least squared error, each 0 or more, their sum 1.

    Args:
        answers: Of each network, [B, ...], to rows that none was fitted on.
        right: The right answers to the same rows.
    """
    errors = np.stack([(each - right).ravel() for each in answers])  # the weights add up to 1
    products = errors @ errors.T / errors.shape[1]
    weights = np.full(len(answers), 1 / len(answers))
    step = 1 / (2 * np.linalg.eigvalsh(products)[-1] or 1.0)
    for _ in range(_STEPS):
        weights = _on_simplex(weights - step * 2 * products @ weights)
    return weights.astype(np.float32)


def _on_simplex(point: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the nearest point whose coordinates are 0 or more and add up to 1.

    By the algorithm of Held, Wolfe and Crowder (1974).
    """
    descending = np.sort(point)[::-1]
    excess = (np.cumsum(descending) - 1) / np.arange(1, len(point) + 1)
    last = np.flatnonzero(descending > excess)[-1]
    projected: NDArray[np.float64] = np.maximum(point - excess[last], 0)
    return projected
