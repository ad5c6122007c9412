"""Numbers the texts that a network has a vector for; written twice like `preprocessing`.

Shape suffixes: B rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from servery_trainer.encoders import text_input
from servery_trainer.preprocessing import FloatArray, GraphPart


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbering:
    """Turns each known text into its number, from 1 in ascending order; all others into 0."""

    column: str
    texts: tuple[str, ...]

    @classmethod
    def fit(cls, column: str, values_B: NDArray[np.object_]) -> Self:
        """Fit the texts of the training part, at least one row."""
        return cls(column=column, texts=tuple(sorted(set(values_B.tolist()))))

    @property
    def size(self) -> int:
        """Different numbers, that of unknown texts among them."""
        return len(self.texts) + 1

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """See `Preprocessing`."""
        return (1,)

    def apply(self, inputs: Mapping[str, NDArray[Any]]) -> FloatArray:
        """See `Preprocessing`."""
        known, texts_B = np.array(self.texts, np.object_), inputs[self.column]
        places_B = np.minimum(np.searchsorted(known, texts_B), len(known) - 1)
        return np.where(known[places_B] == texts_B, places_B + 1, 0).astype(np.float32)

    def to_onnx(self, features: str, prefix: str) -> GraphPart:
        """See `Preprocessing`."""
        number = f"{prefix}number"
        return GraphPart(
            inputs=[text_input(self.column)],
            nodes=[
                helper.make_node(
                    "LabelEncoder",
                    [self.column],
                    [number],
                    domain="ai.onnx.ml",
                    keys_strings=list(self.texts),
                    values_int64s=list(range(1, self.size)),
                    default_int64=0,
                ),
                helper.make_node("Cast", [number], [features], to=onnx.TensorProto.FLOAT),
            ],
            initializers=[],
        )
