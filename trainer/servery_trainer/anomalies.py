"""The head of anomaly detection: how unlike normal rows a row is, and whether that is too much.

Shape suffixes: B rows.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer import plots
from servery_trainer.evaluation import areas_under
from servery_trainer.heads import Arrays, Findings, GraphTail, Output, intervals
from servery_trainer.scores import bootstrap, wilson

SCORE: Final = "score"
IS_ANOMALY: Final = "is_anomaly"

_MARGIN: Final = 1e-4
"""The threshold is above a score seen by this share: rounding does not decide on that row."""


@dataclass(frozen=True, slots=True)
class Anomalies:
    """See `heads.Head`; the answers are the scores [B, 1].

    Args:
        false_alarm_rate: Share of normal rows that may be called anomalies.
        labelled: Whether it is known which rows are anomalies.
        threshold: Larger scores are those of anomalies; NaN until `calibrated`.
        expected_rate: Share of rows like those it was calibrated on that are expected over it.
    """

    false_alarm_rate: float
    labelled: bool
    threshold: float = math.nan
    expected_rate: float = math.nan

    score = "balanced_accuracy"

    @property
    def outputs(self) -> tuple[Output, ...]:
        """See `Head`."""
        return (
            Output(
                name=SCORE,
                dtype=np.dtype(np.float32),
                shape=(1,),
                meaning="mean squared error of the standardised features as told by the network",
            ),
            Output(
                name=IS_ANOMALY,
                dtype=np.dtype(np.bool_),
                shape=(1,),
                meaning=f"whether the score is over {self.threshold:.6g}, or no number",
            ),
        )

    def calibrated(self, answers: NDArray[np.float32]) -> Self:
        """See `heads.Calibrated`: set the threshold by split conformal prediction.

        With n scores of normal rows, a further one is over the k-th smallest with a probability of
        at most 1 - k / (n + 1) (Vovk et al., 2005), whatever their distribution; k is the least
        that keeps `false_alarm_rate`, or n if none does. That the same rows ended the training
        early makes the promise a little weaker.
        """
        ranked = np.sort(answers[:, 0])
        count = len(ranked)
        rank = min(math.ceil((count + 1) * (1 - self.false_alarm_rate) - 1e-9), count)
        return replace(
            self,
            threshold=float(np.float32(ranked[rank - 1] * (1 + _MARGIN))),
            expected_rate=1 - rank / (count + 1),
        )

    def decode(self, answers: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """See `Head`; a score that is no number is that of an anomaly."""
        return {SCORE: answers, IS_ANOMALY: ~(answers <= self.threshold)}

    def to_onnx(self, answers: str, prefix: str) -> GraphTail:
        """See `Head`."""
        threshold = numpy_helper.from_array(
            np.array(self.threshold, np.float32), f"{prefix}threshold"
        )
        normal = f"{prefix}is_normal"
        return GraphTail(
            nodes=[
                helper.make_node("Identity", [answers], [SCORE]),
                helper.make_node("LessOrEqual", [SCORE, threshold.name], [normal]),
                helper.make_node("Not", [normal], [IS_ANOMALY]),
            ],
            initializers=[threshold],
        )

    def clearness_B(self, answers: NDArray[np.float32]) -> NDArray[np.floating]:
        """See `Head`: how far the score is from the threshold, as a share of both."""
        scores_B = answers[:, 0].astype(np.float64)
        threshold = max(self.threshold, float(np.finfo(np.float32).tiny))
        clearness_B: NDArray[np.floating] = np.abs(scores_B - threshold) / (scores_B + threshold)
        return clearness_B

    def row_scores(self, outputs: Arrays, values: NDArray[Any]) -> NDArray[np.float64]:
        """See `Head`: the mean is that of the shares of normal rows and of anomalies told right."""
        right_B = outputs[IS_ANOMALY][:, 0] == (values == 1)
        counts = np.bincount(values, minlength=2)
        scores_B: NDArray[np.float64] = right_B * (
            len(values) / (np.count_nonzero(counts) * counts[values])
        )
        return scores_B

    def metrics(self, outputs: Arrays, values: NDArray[Any]) -> dict[str, float]:
        """See `Head`."""
        scores_B, called_B, truth_B = outputs[SCORE][:, 0], outputs[IS_ANOMALY][:, 0], values == 1
        figures = {
            "threshold": self.threshold,
            "expected_false_alarm_rate": self.expected_rate,
            self.score: float(self.row_scores(outputs, values).mean()),
        }
        if not truth_B.all():
            figures["false_alarm_rate"] = float(called_B[~truth_B].mean())
        roc_auc, pr_auc = areas_under(scores_B, truth_B)
        if roc_auc is not None and pr_auc is not None:
            right, called, actual = (called_B & truth_B).sum(), called_B.sum(), truth_B.sum()
            figures |= {
                "roc_auc": roc_auc,
                "pr_auc": pr_auc,
                "precision": float(right / max(called, 1)),
                "recall": float(right / actual),
                "f1": float(2 * right / (called + actual)),
            }
        return figures

    def evaluate(self, outputs: Arrays, values: NDArray[Any]) -> Findings:
        """See `Head`."""
        called_B, truth_B = outputs[IS_ANOMALY][:, 0], values == 1
        normal_B = ~truth_B
        ends = {"false_alarm_rate": wilson(int(called_B[normal_B].sum()), int(normal_B.sum()))}
        if truth_B.any():
            ends["recall"] = wilson(int(called_B[truth_B].sum()), int(truth_B.sum()))
            ends |= bootstrap(
                {"score": outputs[SCORE][:, 0], "truth": truth_B},
                {"roc_auc": lambda draws: _areas(draws["score"], draws["truth"])},
            )
        metrics = self.metrics(outputs, values)
        return Findings(
            result=pb.TrainingResult(metrics=metrics, intervals=intervals(ends)),
            pictures={
                "scores.png": plots.anomaly_scores(outputs[SCORE][:, 0], truth_B, self.threshold)
            },
        )


def _areas(scores: NDArray[Any], truth: NDArray[np.bool_]) -> list[float]:
    """Return the area under the ROC curve of each draw [draws, B]; 0.5 if all rows are alike."""
    drawn = zip(scores, truth, strict=True)
    return [areas_under(scores_B, truth_B)[0] or 0.5 for scores_B, truth_B in drawn]
