"""How good a graph is on some of the rows: those with one value of a column.

Shape suffixes: B rows.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.data_errors import shown
from servery_trainer.heads import Arrays, Head

MOST_VALUES: Final = 20


def by_slice(
    head: Head, outputs: Arrays, values: NDArray[Any], columns: Mapping[str, NDArray[np.object_]]
) -> list[pb.Slice]:
    """Judge the rows of each of the most frequent values of each column.

    Args:
        head: What judges.
        outputs: Of the graph, for rows not trained on.
        values: `Target.values` of the same rows.
        columns: Texts [B] of the same rows, by column.
    """
    found = []
    for column, texts_B in columns.items():
        for text, count in Counter(texts_B.tolist()).most_common(MOST_VALUES):
            rows = np.flatnonzero(texts_B == text)
            part = {name: array[rows] for name, array in outputs.items()}
            metrics = head.metrics(part, values[rows])
            found.append(
                pb.Slice(column=column, value=shown(text), row_count=count, metrics=metrics)
            )
    return found
