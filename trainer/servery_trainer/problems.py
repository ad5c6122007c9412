"""Which head and which objective belong to a target.

Another kind of learning problem is: a `Target` with its reader, a `Head`, an `Objective` and how
each framework computes it, a case in `pose`, and a `Goal` (or a task) that `examples` reads it for.
No other step of a job knows of it.
"""

import numpy as np
from numpy.typing import NDArray

from servery_trainer import autoregression
from servery_trainer.anomalies import Anomalies
from servery_trainer.classification import Classification
from servery_trainer.forecast import Forecast
from servery_trainer.heads import Head
from servery_trainer.hyperparameters import Training
from servery_trainer.interactions import Interactions
from servery_trainer.label_sets import LabelSets
from servery_trainer.multi_label import MultiLabel
from servery_trainer.normality import Normality
from servery_trainer.objectives import (
    BatchSoftmax,
    CrossEntropy,
    ForecastError,
    LabelCrossEntropy,
    Objective,
    Reconstruction,
    SquaredError,
)
from servery_trainer.preprocessing import mean_and_deviation
from servery_trainer.quantities import Quantities
from servery_trainer.recommendations import Recommendations
from servery_trainer.regression import Regression
from servery_trainer.schedules import class_weights
from servery_trainer.targets import Classes, Target
from servery_trainer.windows import Horizons


def pose(target: Target, train: NDArray[np.int64], settings: Training) -> tuple[Head, Objective]:
    """Return how a target is answered and how it is learned.

    Args:
        target: Of all rows.
        train: Indices of the rows of the training part, the only ones looked at.
        settings: How the network is fitted.
    """
    match target:
        case Classes(values=codes_B, labels=labels):
            weights = class_weights(settings, codes_B[train], len(labels))
            return Classification(labels), CrossEntropy(weights)
        case Quantities(values=values, place=place):
            numbers = values[train].astype(np.float64)
            mean, deviation = float(numbers.mean()), float(numbers.std()) or 1.0
            return Regression(place.meaning, deviation**2), SquaredError(mean, deviation)
        case Horizons(values=values, past=past, column=column, naive_errors_B=naive_errors_B):
            learned = past[train]
            mean, deviation = map(float, mean_and_deviation(learned))
            scale = float(naive_errors_B[train].mean(dtype=np.float64)) or deviation
            head = Forecast(column, values.shape[1], scale)
            linear = autoregression.fit(learned, values[train])
            return head, ForecastError(SquaredError(mean, deviation), linear)
        case LabelSets(values=values, labels=labels):
            by_label = [class_weights(settings, truths, 2) for truths in values[train].T]
            return MultiLabel(labels), LabelCrossEntropy(*np.stack(by_label, axis=1))
        case Normality(labelled=labelled, false_alarm_rate=rate):
            return Anomalies(rate, labelled), Reconstruction()
        case Interactions(items=items, values=values, task=task):
            best = Recommendations.of(values[train], items, task.k, repeat_items=task.repeat_items)
            taken = values[train][: 0 if task.repeat_items else None]
            return best, BatchSoftmax(best.log_shares, taken)
        case _:
            raise TypeError(f"nothing learns {type(target).__name__}")
