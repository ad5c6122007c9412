"""Which head and which objective belong to a target. Imports TensorFlow: for a job only."""

import numpy as np
from numpy.typing import NDArray

from servery_trainer.classification import Classification
from servery_trainer.heads import Head
from servery_trainer.hyperparameters import Training
from servery_trainer.objectives import CrossEntropy, Objective
from servery_trainer.schedules import class_weights
from servery_trainer.targets import Classes, Target


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
        case _:
            raise TypeError(f"nothing learns {type(target).__name__}")
