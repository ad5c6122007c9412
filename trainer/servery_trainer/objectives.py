"""What networks are fitted on, said without any framework; each framework has its own way to do it.

Shape suffixes: B rows, K classes.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from servery_trainer.preprocessing import FloatArray


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Of one class per row, from one output per class. The answers are probabilities."""

    class_weights: FloatArray
    """How much a row of each class counts, [K]."""

    figure: ClassVar = "accuracy"
    """What is followed beside the loss."""


@dataclass(frozen=True, slots=True)
class SquaredError:
    """Of one or several numbers per row, standardised. The answers are in their own unit."""

    mean: float
    """Of the numbers of the training part."""

    deviation: float
    """Their standard deviation, over 0."""

    figure: ClassVar = "mae"


@dataclass(frozen=True, slots=True)
class ForecastError:
    """Of the numbers that come next, told as their distance to a linear forecast.

    The features are [B, step, channel], and the first channel is what is forecast.
    """

    error: SquaredError
    """Of the numbers; on the scale of the first channel."""

    linear: FloatArray
    """How much each step counts in the linear forecast of each step ahead: `autoregression.fit`."""

    figure: ClassVar = "mae"


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Of features by features, as near as a network can tell them again.

    The loss is the mean squared error over the features, and so is the answer, [B, 1].
    """

    figure: ClassVar = "mae"


@dataclass(frozen=True, slots=True)
class LabelCrossEntropy:
    """Of any number of labels per row, from one output per label. The answers are probabilities."""

    without: FloatArray
    """How much a row without each label counts, [K]."""

    with_it: FloatArray
    """How much a row with it does, [K]."""

    figure: ClassVar = "subset_accuracy"


@dataclass(frozen=True, slots=True)
class BatchSoftmax:
    """Of the item that a user took among those that others of the batch took.

    The items of a batch are a sample in which those taken often are found more often. Yi et al.
    (2019) take the logarithm of that from the scores for training. Here scores are products of
    vectors plus the logarithm of the share of an item: that cancels, so that vectors learn only how
    users differ from the average one. The answers are the number of the user, then the score of
    each item.
    """

    log_shares: FloatArray
    """Of each item in what is taken: natural logarithms."""

    taken: NDArray[np.int64]
    """Pairs [N, 2] of a user and an item that shall not count against the item of a row."""

    figure: ClassVar = "batch_accuracy"

    def taken_keys(self) -> NDArray[np.int64]:
        """Return `user * items + item` of each such pair, ascending, behind a -1."""
        keys = self.taken @ np.array([len(self.log_shares), 1])
        return np.concatenate([[-1], np.unique(keys)])  # never empty


Objective = (
    CrossEntropy | SquaredError | ForecastError | Reconstruction | LabelCrossEntropy | BatchSoftmax
)
"""Joins a network to what its rows teach; `figure` names what is followed beside the loss."""
