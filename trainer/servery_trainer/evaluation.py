"""How good a classifier is on rows it has not seen.

Shape suffixes: B rows, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from servery_trainer.preprocessing import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMetrics:
    """Figures of one class."""

    label: str
    precision: float
    """Share of rows predicted as this class that are of it; 0 if none is predicted so."""
    recall: float
    """Share of rows of this class that are predicted so."""
    f1: float
    """Harmonic mean of both; 0 if both are."""
    support: int
    """Rows of this class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Figures of one classifier on some rows."""

    accuracy: float
    log_loss: float
    """Mean of -log(probability of the true class), in nats."""
    classes: tuple[ClassMetrics, ...]
    confusion: NDArray[np.int64]
    """[true class, predicted class]: number of rows."""

    @property
    def summary(self) -> dict[str, float]:
        """The figures of `TrainingResult.metrics`; macro ones weigh all classes alike."""
        return {
            "accuracy": self.accuracy,
            "macro_precision": float(np.mean([c.precision for c in self.classes])),
            "macro_recall": float(np.mean([c.recall for c in self.classes])),
            "macro_f1": float(np.mean([c.f1 for c in self.classes])),
            "log_loss": self.log_loss,
        }


def evaluate(
    probabilities_BK: FloatArray, codes_B: NDArray[np.int64], labels: Sequence[str]
) -> Evaluation:
    """Judge predictions.

    Args:
        probabilities_BK: The prediction for each row, at least one row.
        codes_B: The true class of each row.
        labels: The text of each class.
    """
    classes = len(labels)
    predicted_B = probabilities_BK.argmax(axis=1)
    confusion = np.bincount(codes_B * classes + predicted_B, minlength=classes * classes)
    confusion = confusion.reshape(classes, classes)
    right, actual, claimed = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = right / np.maximum(claimed, 1), right / np.maximum(actual, 1)
    f1 = 2 * right / np.maximum(actual + claimed, 1)
    likelihood_B = probabilities_BK[np.arange(len(codes_B)), codes_B].astype(np.float64)
    floor = np.finfo(np.float32).eps
    return Evaluation(
        accuracy=float(right.sum() / len(codes_B)),
        log_loss=float(-np.log(np.clip(likelihood_B, floor, 1)).mean()),
        classes=tuple(
            ClassMetrics(
                label=label,
                precision=float(precision[code]),
                recall=float(recall[code]),
                f1=float(f1[code]),
                support=int(actual[code]),
            )
            for code, label in enumerate(labels)
        ),
        confusion=confusion.astype(np.int64),
    )
