"""The head of regression: one number, in the unit of its column.

Shape suffixes: B rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer import plots
from servery_trainer.heads import Arrays, Findings, GraphTail, Output, intervals
from servery_trainer.scores import bootstrap

VALUE: Final = "value"


@dataclass(frozen=True, slots=True)
class Regression:
    """See `heads.Head`; the answers are the numbers [B, 1].

    Args:
        meaning: What the numbers are.
        variance: Of the numbers of the training part, over 0.
    """

    meaning: str
    variance: float

    score = "r2"

    @property
    def outputs(self) -> tuple[Output, ...]:
        """See `Head`."""
        dtype = np.dtype(np.float32)
        return (Output(name=VALUE, dtype=dtype, shape=(1,), meaning=self.meaning),)

    def decode(self, answers: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """See `Head`."""
        return {VALUE: answers}

    def to_onnx(self, answers: str, prefix: str) -> GraphTail:
        """See `Head`."""
        return GraphTail(nodes=[helper.make_node("Identity", [answers], [VALUE])])

    def clearness_B(self, answers: NDArray[np.float32]) -> NDArray[np.floating]:
        """See `Head`: no number is clearer than another."""
        return np.zeros(len(answers))

    def row_scores(self, outputs: Arrays, values: NDArray[Any]) -> NDArray[np.float64]:
        """See `Head`: the mean is R², the share of the variance of these rows that is explained.

        Of rows without any variance, that of the training part takes its place.
        """
        variance = float(values.var(dtype=np.float64)) or self.variance
        return 1 - _errors_B(outputs, values) ** 2 / variance

    def metrics(self, outputs: Arrays, values: NDArray[Any]) -> dict[str, float]:
        """See `Head`."""
        errors_B = _errors_B(outputs, values)
        mse = float((errors_B**2).mean())
        figures = {"mae": float(np.abs(errors_B).mean()), "mse": mse, "rmse": mse**0.5}
        if values.min() < values.max():
            figures["r2"] = float(self.row_scores(outputs, values).mean())
        return figures

    def evaluate(self, outputs: Arrays, values: NDArray[Any]) -> Findings:
        """See `Head`."""
        metrics = self.metrics(outputs, values)
        found = bootstrap(
            {"error": _errors_B(outputs, values), "truth": values[:, 0].astype(np.float64)},
            {
                "mae": lambda draws: np.abs(draws["error"]).mean(axis=1),
                "rmse": lambda draws: (draws["error"] ** 2).mean(axis=1) ** 0.5,
                "r2": self._r2,
            },
        )
        return Findings(
            result=pb.TrainingResult(metrics=metrics, intervals=intervals(found)),
            pictures={
                "residuals.png": plots.residuals(outputs[VALUE][:, 0], values[:, 0], metrics)
            },
        )

    def _r2(self, draws: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
        variances = draws["truth"].var(axis=1)
        variances[variances == 0] = self.variance
        r2: NDArray[np.float64] = 1 - (draws["error"] ** 2).mean(axis=1) / variances
        return r2


def _errors_B(outputs: Arrays, values: NDArray[Any]) -> NDArray[np.float64]:
    errors_B: NDArray[np.float64] = outputs[VALUE][:, 0].astype(np.float64) - values[:, 0]
    return errors_B
