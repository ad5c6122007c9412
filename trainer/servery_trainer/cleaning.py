"""Counts what a policy changed: values put in for missing ones, and values held within bounds."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servery_trainer.preprocessing import JoinedPreprocessing, Preprocessing, TablePreprocessing
from servery_trainer.rows import are_missing


def count_imputed(inputs: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Return the number of missing values of each input of a table that has some."""
    counts = {name: int(are_missing(values).sum()) for name, values in inputs.items()}
    return {name: count for name, count in counts.items() if count}


def count_clipped(
    preprocessing: Preprocessing, inputs: Mapping[str, NDArray[Any]]
) -> dict[str, dict[str, Any]]:
    """Return the ends of each column that is held between some, and how many values are outside."""
    found: dict[str, dict[str, Any]] = {}
    parts = (
        preprocessing.parts if isinstance(preprocessing, JoinedPreprocessing) else [preprocessing]
    )
    for part in parts:
        if isinstance(part, TablePreprocessing) and part.bounds is not None:
            for name, low, high in zip(part.columns, *part.bounds, strict=True):
                if np.isfinite(low) or np.isfinite(high):
                    found[name] = {
                        "lower": float(low) if np.isfinite(low) else None,
                        "upper": float(high) if np.isfinite(high) else None,
                        "raised": int((inputs[name] < low).sum()),
                        "lowered": int((inputs[name] > high).sum()),
                    }
    return found
