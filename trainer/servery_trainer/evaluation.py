"""How good a classifier is on rows it has not seen.

Shape suffixes: B rows, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.preprocessing import FloatArray
from servery_trainer.scores import (
    Interval,
    average_precision,
    bootstrap,
    calibration_error,
    roc_auc,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMetrics:
    """Figures of one class, or of one of several labels."""

    label: str
    precision: float
    """Share of rows predicted as this class that are of it; 0 if none is predicted so."""
    recall: float
    """Share of rows of this class that are predicted so."""
    f1: float
    """Harmonic mean of both; 0 if both are."""
    support: int
    """Rows of this class."""
    roc_auc: float | None
    """Of this class against the rest; None if all rows or none are of it."""
    pr_auc: float | None
    """Average precision of this class against the rest; None as above."""

    def to_proto(self) -> pb.LabelMetrics:
        """Render it."""
        return pb.LabelMetrics(**asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Figures of one classifier on some rows."""

    accuracy: float
    log_loss: float
    """Mean of -log(probability of the true class), in nats."""
    classes: tuple[ClassMetrics, ...]
    confusion: NDArray[np.int64]
    """[true class, predicted class]: number of rows."""

    calibration_error: float
    """Expected |confidence - accuracy| over bins of confidence."""
    intervals: Mapping[str, Interval]
    """95 % confidence intervals of `accuracy`, `macro_f1` and `log_loss`, by bootstrap over the
    rows."""

    @property
    def summary(self) -> dict[str, float]:
        """The figures of `TrainingResult.metrics`; macro ones weigh all classes alike."""
        weights = [c.support for c in self.classes]
        present = [c for c in self.classes if c.support]
        figures = {
            "accuracy": self.accuracy,
            "balanced_accuracy": float(np.mean([c.recall for c in present])),
            "log_loss": self.log_loss,
            "calibration_error": self.calibration_error,
        }
        for name in ("precision", "recall", "f1"):
            values = [getattr(c, name) for c in self.classes]
            figures[f"macro_{name}"] = float(np.mean(values))
            figures[f"weighted_{name}"] = float(np.average(values, weights=weights))
        for name in ("roc_auc", "pr_auc"):
            areas = [getattr(c, name) for c in self.classes if getattr(c, name) is not None]
            if areas:
                figures[name] = float(np.mean(areas))
        return figures


def evaluate(
    probabilities_BK: FloatArray, codes_B: NDArray[np.int64], labels: Sequence[str]
) -> Evaluation:
    """Judge predictions.

    Args:
        probabilities_BK: The prediction for each row, at least one row.
        codes_B: The true class of each row.
        labels: The text of each class.
    """
    intervals = _intervals(probabilities_BK, codes_B)
    return _evaluation(probabilities_BK, codes_B, labels, intervals)


def summary(
    probabilities_BK: FloatArray, codes_B: NDArray[np.int64], labels: Sequence[str]
) -> dict[str, float]:
    """Return `Evaluation.summary` alone; see `evaluate`."""
    return _evaluation(probabilities_BK, codes_B, labels, {}).summary


def _evaluation(
    probabilities_BK: FloatArray,
    codes_B: NDArray[np.int64],
    labels: Sequence[str],
    intervals: Mapping[str, Interval],
) -> Evaluation:
    classes = len(labels)
    predicted_B = probabilities_BK.argmax(axis=1)
    confusion = np.bincount(codes_B * classes + predicted_B, minlength=classes * classes)
    confusion = confusion.reshape(classes, classes)
    right, actual, claimed = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = right / np.maximum(claimed, 1), right / np.maximum(actual, 1)
    f1 = 2 * right / np.maximum(actual + claimed, 1)
    areas = [areas_under(probabilities_BK[:, code], codes_B == code) for code in range(classes)]
    return Evaluation(
        accuracy=float(right.sum() / len(codes_B)),
        log_loss=float(_losses_B(probabilities_BK, codes_B).mean()),
        classes=tuple(
            ClassMetrics(
                label=label,
                precision=float(precision[code]),
                recall=float(recall[code]),
                f1=float(f1[code]),
                support=int(actual[code]),
                roc_auc=areas[code][0],
                pr_auc=areas[code][1],
            )
            for code, label in enumerate(labels)
        ),
        confusion=confusion.astype(np.int64),
        calibration_error=calibration_error(probabilities_BK, codes_B),
        intervals=intervals,
    )


def _intervals(probabilities_BK: FloatArray, codes_B: NDArray[np.int64]) -> dict[str, Interval]:
    classes = probabilities_BK.shape[1]
    cells_B = codes_B * classes + probabilities_BK.argmax(axis=1)
    return bootstrap(
        {"cell": cells_B, "loss": _losses_B(probabilities_BK, codes_B)},
        {
            "accuracy": lambda draws: (draws["cell"] % (classes + 1) == 0).mean(axis=1),
            "macro_f1": lambda draws: [_macro_f1(cell, classes) for cell in draws["cell"]],
            "log_loss": lambda draws: draws["loss"].mean(axis=1),
        },
    )


def _losses_B(probabilities_BK: FloatArray, codes_B: NDArray[np.int64]) -> NDArray[np.float64]:
    likelihood_B = probabilities_BK[np.arange(len(codes_B)), codes_B].astype(np.float64)
    losses_B: NDArray[np.float64] = -np.log(np.clip(likelihood_B, np.finfo(np.float32).eps, 1))
    return losses_B


def _macro_f1(cell_B: NDArray[np.int64], classes: int) -> float:
    """Return the mean F1 over classes of rows in these cells of the confusion matrix."""
    actual_B, predicted_B = np.divmod(cell_B, classes)
    right = np.bincount(actual_B[actual_B == predicted_B], minlength=classes)
    rows = np.bincount(actual_B, minlength=classes) + np.bincount(predicted_B, minlength=classes)
    return float((2 * right / np.maximum(rows, 1)).mean())


def areas_under(
    scores_B: FloatArray, truth_B: NDArray[np.bool_]
) -> tuple[float, float] | tuple[None, None]:
    """Return the areas under the ROC and the precision-recall curve; None if all rows are alike."""
    if truth_B.all() or not truth_B.any():
        return None, None
    return roc_auc(scores_B, truth_B), average_precision(scores_B, truth_B)
