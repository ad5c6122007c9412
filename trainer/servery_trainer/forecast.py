"""The head of forecasts: the next numbers of a time series, in the unit of their column.

Shape suffixes: B windows.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer import plots
from servery_trainer.heads import Arrays, Findings, GraphTail, Output, intervals
from servery_trainer.scores import bootstrap

FORECAST: Final = "forecast"


@dataclass(frozen=True, slots=True)
class Forecast:
    """See `heads.Head`; the answers are the numbers [B, horizon].

    Args:
        column: Where the numbers come from.
        horizon: How many steps ahead.
        scale: Mean error of the naive forecast one step ahead on the training part, over 0: what
            `mase` is measured in (Hyndman and Koehler, 2006).
    """

    column: str
    horizon: int
    scale: float

    score = "skill"

    @property
    def outputs(self) -> tuple[Output, ...]:
        """See `Head`."""
        dtype, shape = np.dtype(np.float32), (self.horizon,)
        meaning = f"column `{self.column}`, the next steps"
        return (Output(name=FORECAST, dtype=dtype, shape=shape, meaning=meaning),)

    def decode(self, answers: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """See `Head`."""
        return {FORECAST: answers}

    def to_onnx(self, answers: str, prefix: str) -> GraphTail:
        """See `Head`."""
        return GraphTail(nodes=[helper.make_node("Identity", [answers], [FORECAST])])

    def clearness_B(self, answers: NDArray[np.float32]) -> NDArray[np.floating]:
        """See `Head`: no forecast is clearer than another."""
        return np.zeros(len(answers))

    def row_scores(self, outputs: Arrays, values: NDArray[Any]) -> NDArray[np.float64]:
        """See `Head`: 1 - the error in units of `scale`; 0 is as good as the naive forecast."""
        skill_B: NDArray[np.float64] = 1 - _errors(outputs, values).mean(axis=1) / self.scale
        return skill_B

    def metrics(self, outputs: Arrays, values: NDArray[Any]) -> dict[str, float]:
        """See `Head`."""
        errors = _errors(outputs, values)
        mae, mse = float(errors.mean()), float((errors**2).mean())
        mase = mae / self.scale
        return {"mae": mae, "mse": mse, "rmse": mse**0.5, "mase": mase, "skill": 1 - mase}

    def evaluate(self, outputs: Arrays, values: NDArray[Any]) -> Findings:
        """See `Head`.

        The intervals take windows for independent; neighbours are not, so they are too narrow.
        """
        errors = _errors(outputs, values)
        found = bootstrap(
            {"absolute": errors.mean(axis=1), "square": (errors**2).mean(axis=1)},
            {
                "mae": lambda draws: draws["absolute"].mean(axis=1),
                "rmse": lambda draws: draws["square"].mean(axis=1) ** 0.5,
                "mase": lambda draws: draws["absolute"].mean(axis=1) / self.scale,
            },
        )
        by_step = errors.mean(axis=0)
        return Findings(
            result=pb.TrainingResult(
                metrics=self.metrics(outputs, values), intervals=intervals(found)
            ),
            details={"mae_by_step": by_step.tolist(), "naive_mae": self.scale},
            pictures={
                "forecast.png": plots.forecast(outputs[FORECAST], values, by_step, self.scale)
            },
        )


def _errors(outputs: Arrays, values: NDArray[Any]) -> NDArray[np.float64]:
    """Return how far off each number is [B, horizon]."""
    errors: NDArray[np.float64] = np.abs(outputs[FORECAST].astype(np.float64) - values)
    return errors
