"""What each input adds to the answers.

Shape suffixes: B rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servery_trainer.parity import Graph

REPEATS: Final = 5
MOST_ROWS: Final = 1000


@dataclass(frozen=True, slots=True)
class Importance:
    """What is lost without one input."""

    input: str
    accuracy_drop: float
    """Mean over the shuffles; 0 or below for an input that adds nothing."""
    deviation: float
    """Standard deviation over the shuffles."""


def permutation_importance(
    graph: Graph, inputs: Mapping[str, NDArray[Any]], codes_B: NDArray[np.int64]
) -> tuple[Importance, ...]:
    """Shuffle the values of one input at a time between rows (Breiman, 2001).

    Inputs that say the same hide each other: without one of them the other still tells.

    Args:
        graph: What is served.
        inputs: Of rows not trained on; the first `MOST_ROWS` are used.
        codes_B: Their true classes.

    Returns:
        One entry per input, the most important first; none if there is one input only.
    """
    if len(inputs) < 2:
        return ()
    rows = {name: values[:MOST_ROWS] for name, values in inputs.items()}
    truth_B = codes_B[:MOST_ROWS]
    rng = np.random.Generator(np.random.PCG64(0))

    def accuracy(rows: Mapping[str, NDArray[Any]]) -> float:
        return float(np.mean(graph.predict(rows).argmax(axis=1) == truth_B))

    whole = accuracy(rows)
    found = []
    for name, values in rows.items():
        drops = [
            whole - accuracy({**rows, name: values[rng.permutation(len(truth_B))]})
            for _ in range(REPEATS)
        ]
        found.append(Importance(name, float(np.mean(drops)), float(np.std(drops))))
    return tuple(sorted(found, key=lambda importance: -importance.accuracy_drop))
