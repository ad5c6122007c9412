"""How the step size and the weights of classes follow from what was asked."""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.hyperparameters import Training
from servery_trainer.preprocessing import FloatArray

_CONSTANT: Final = pb.LEARNING_RATE_SCHEDULE_CONSTANT


def is_constant(settings: Training) -> bool:
    """Tell whether every step has the size `settings.learning_rate`."""
    return settings.schedule == _CONSTANT and not settings.warmup_epochs


def learning_rate(settings: Training, step: int, steps_per_epoch: int) -> float:
    """Return the size of a step.

    It grows along a line through the warm-up, is whole at the first step after it, and from there
    follows the schedule, which would be 0 at the first step after the last.

    Args:
        settings: What was asked for.
        step: Which, from 0, over all epochs.
        steps_per_epoch: At least 1.
    """
    warmup = settings.warmup_epochs * steps_per_epoch
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    done = (step - warmup) / (settings.max_epochs * steps_per_epoch - warmup)
    match settings.schedule:
        case pb.LEARNING_RATE_SCHEDULE_COSINE:
            return settings.learning_rate * (1 + math.cos(math.pi * done)) / 2
        case pb.LEARNING_RATE_SCHEDULE_LINEAR:
            return settings.learning_rate * (1 - done)
        case _:
            return settings.learning_rate


def class_weights(settings: Training, codes_B: NDArray[np.int64], classes: int) -> FloatArray:
    """Return the weight of each class [classes] in the loss; their mean over the rows is 1.

    Args:
        settings: What was asked for.
        codes_B: The class of each row trained on.
        classes: How many there are.
    """
    if settings.class_weights != pb.CLASS_WEIGHTS_BALANCED:
        return np.ones(classes, np.float32)
    counts = np.bincount(codes_B, minlength=classes)
    present = np.count_nonzero(counts)
    return (len(codes_B) / (present * np.maximum(counts, 1))).astype(np.float32)
