"""The head of multi-label classification: a probability for each label, alone.

Shape suffixes: B rows, K labels.
"""

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer import plots
from servery_trainer.evaluation import ClassMetrics, areas_under
from servery_trainer.heads import Arrays, Findings, GraphTail, Output, intervals
from servery_trainer.scores import bootstrap

PROBABILITIES: Final = "probabilities"
PREDICTED: Final = "predicted"

_THRESHOLD: Final = np.float32(0.5)


@dataclass(frozen=True, slots=True)
class MultiLabel:
    """See `heads.Head`; the answers are probabilities [B, K].

    Args:
        labels: The text of each label.
    """

    labels: tuple[str, ...]

    score = "sample_f1"

    @property
    def outputs(self) -> tuple[Output, ...]:
        """See `Head`."""
        return (
            Output(
                name=PROBABILITIES,
                dtype=np.dtype(np.float32),
                shape=(len(self.labels),),
                meaning="probability of each label",
                labels=self.labels,
            ),
            Output(
                name=PREDICTED,
                dtype=np.dtype(np.bool_),
                shape=(len(self.labels),),
                meaning="whether the probability is 0.5 or more",
                labels=self.labels,
            ),
        )

    def decode(self, answers: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """See `Head`."""
        return {PROBABILITIES: answers, PREDICTED: answers >= _THRESHOLD}

    def to_onnx(self, answers: str, prefix: str) -> GraphTail:
        """See `Head`."""
        threshold = numpy_helper.from_array(np.array(_THRESHOLD), f"{prefix}threshold")
        return GraphTail(
            nodes=[
                helper.make_node("Identity", [answers], [PROBABILITIES]),
                helper.make_node("GreaterOrEqual", [PROBABILITIES, threshold.name], [PREDICTED]),
            ],
            initializers=[threshold],
        )

    def clearness_B(self, answers: NDArray[np.float32]) -> NDArray[np.floating]:
        """See `Head`: how far the least clear label is from the threshold."""
        clearness_B: NDArray[np.floating] = np.abs(answers - _THRESHOLD).min(axis=1)
        return clearness_B

    def row_scores(self, outputs: Arrays, values: NDArray[Any]) -> NDArray[np.float64]:
        """See `Head`: F1 of the labels of each row; 1 if it has none and none is predicted."""
        right_B, wrong_B = _counts_B(outputs, values)
        none_B = right_B + wrong_B == 0
        f1_B: NDArray[np.float64] = (2 * right_B + none_B) / np.maximum(2 * right_B + wrong_B, 1)
        return f1_B

    def metrics(self, outputs: Arrays, values: NDArray[Any]) -> dict[str, float]:
        """See `Head`."""
        return self._metrics(outputs, values, self._labels(outputs, values))

    def evaluate(self, outputs: Arrays, values: NDArray[Any]) -> Findings:
        """See `Head`."""
        labels = self._labels(outputs, values)
        right_B, wrong_B = _counts_B(outputs, values)
        found = bootstrap(
            {
                "right": right_B,
                "wrong": wrong_B,
                "sample_f1": self.row_scores(outputs, values),
                "loss": _losses_B(outputs, values),
            },
            {
                "subset_accuracy": lambda draws: (draws["wrong"] == 0).mean(axis=1),
                "micro_f1": lambda draws: _micro_f1(draws["right"], draws["wrong"]),
                "sample_f1": lambda draws: draws["sample_f1"].mean(axis=1),
                "log_loss": lambda draws: draws["loss"].mean(axis=1),
            },
        )
        return Findings(
            result=pb.TrainingResult(
                metrics=self._metrics(outputs, values, labels),
                intervals=intervals(found),
                labels=self.labels,
                label_metrics=[figures.to_proto() for figures in labels],
            ),
            details={"classes": [asdict(figures) for figures in labels]},
            pictures={
                "roc.png": plots.roc(
                    labels, outputs[PROBABILITIES], values.astype(np.bool_), exclusive=False
                )
            },
        )

    def _labels(self, outputs: Arrays, values: NDArray[Any]) -> list[ClassMetrics]:
        truth_BK, predicted_BK = values.astype(np.bool_), outputs[PREDICTED]
        right = (truth_BK & predicted_BK).sum(axis=0)
        actual, claimed = truth_BK.sum(axis=0), predicted_BK.sum(axis=0)
        found = []
        for code, label in enumerate(self.labels):
            roc_auc, pr_auc = areas_under(outputs[PROBABILITIES][:, code], truth_BK[:, code])
            figures = ClassMetrics(
                label=label,
                precision=float(right[code] / max(claimed[code], 1)),
                recall=float(right[code] / max(actual[code], 1)),
                f1=float(2 * right[code] / max(actual[code] + claimed[code], 1)),
                support=int(actual[code]),
                roc_auc=roc_auc,
                pr_auc=pr_auc,
            )
            found.append(figures)
        return found

    def _metrics(
        self, outputs: Arrays, values: NDArray[Any], labels: list[ClassMetrics]
    ) -> dict[str, float]:
        truth_BK, predicted_BK = values.astype(np.bool_), outputs[PREDICTED]
        right_B, wrong_B = _counts_B(outputs, values)
        right = int(right_B.sum())
        figures = {
            "subset_accuracy": float((wrong_B == 0).mean()),
            "sample_f1": float(self.row_scores(outputs, values).mean()),
            "log_loss": float(_losses_B(outputs, values).mean()),
            "micro_precision": right / max(int(predicted_BK.sum()), 1),
            "micro_recall": right / max(int(truth_BK.sum()), 1),
            "micro_f1": float(_micro_f1(right_B, wrong_B)),
        }
        for name in ("precision", "recall", "f1"):
            figures[f"macro_{name}"] = float(np.mean([getattr(found, name) for found in labels]))
        for name in ("roc_auc", "pr_auc"):
            areas = [area for found in labels if (area := getattr(found, name)) is not None]
            if areas:
                figures[name] = float(np.mean(areas))
        return figures


def _counts_B(outputs: Arrays, values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the labels of each row that are rightly predicted, and those that are wrong."""
    truth_BK, predicted_BK = values.astype(np.bool_), outputs[PREDICTED]
    return (truth_BK & predicted_BK).sum(axis=1), (truth_BK ^ predicted_BK).sum(axis=1)


def _micro_f1(right: NDArray[Any], wrong: NDArray[Any]) -> NDArray[np.float64]:
    rights, wrongs = right.sum(axis=-1), wrong.sum(axis=-1)
    f1: NDArray[np.float64] = 2 * rights / np.maximum(2 * rights + wrongs, 1)
    return f1


def _losses_B(outputs: Arrays, values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean cross-entropy over the labels of each row, in nats."""
    truth_BK = values.astype(np.bool_)
    probabilities_BK = outputs[PROBABILITIES].astype(np.float64)
    likelihood_BK = np.where(truth_BK, probabilities_BK, 1 - probabilities_BK)
    clipped_BK = np.clip(likelihood_BK, np.finfo(np.float32).eps, 1)
    losses_B: NDArray[np.float64] = -np.log(clipped_BK).mean(axis=1)
    return losses_B
