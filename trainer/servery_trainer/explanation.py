"""What each input adds to the answers."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servery_trainer.heads import Arrays, Head
from servery_trainer.parity import Graph

REPEATS: Final = 5
MOST_ROWS: Final = 1000


@dataclass(frozen=True, slots=True)
class Importance:
    """What is lost without one input."""

    input: str
    score_drop: float
    """Of `Head.score`: mean over the shuffles; 0 or below for an input that adds nothing."""
    deviation: float
    """Standard deviation over the shuffles."""


def permutation_importance(
    graph: Graph, head: Head, inputs: Arrays, values: NDArray[Any]
) -> tuple[Importance, ...]:
    """Shuffle the values of one input at a time between rows (Breiman, 2001).

    Inputs that say the same hide each other: without one of them the other still tells.

    Args:
        graph: What is served.
        head: What judges it.
        inputs: Of rows not trained on; the first `MOST_ROWS` are used.
        values: `Target.values` of these rows.

    Returns:
        One entry per input, the most important first; none if there is one input only.
    """
    if len(inputs) < 2:
        return ()
    rows = {name: values[:MOST_ROWS] for name, values in inputs.items()}
    truth = values[:MOST_ROWS]
    rng = np.random.Generator(np.random.PCG64(0))

    def score(rows: Arrays) -> float:
        return float(np.mean(head.row_scores(graph.predict(rows), truth)))

    whole = score(rows)
    found = []
    for name, column in rows.items():
        drops = [
            whole - score({**rows, name: column[rng.permutation(len(truth))]})
            for _ in range(REPEATS)
        ]
        found.append(Importance(name, float(np.mean(drops)), float(np.std(drops))))
    return tuple(sorted(found, key=lambda importance: -importance.score_drop))
