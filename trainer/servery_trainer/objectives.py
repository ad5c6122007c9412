"""What networks are fitted on. Imports TensorFlow: for the process of a job only.

Shape suffixes: B rows, K classes.
"""

from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from servery_trainer.preprocessing import FloatArray


class Objective(Protocol):
    """Joins a network to what its rows teach."""

    figure: str
    """What `figures` are called: `accuracy`."""

    def losses(self, features: tf.Tensor, outputs: Any, values: tf.Tensor) -> tf.Tensor:
        """Return the loss of each row [B]; their mean is minimised.

        Args:
            features: What the network was given.
            outputs: What it said: a tensor, or a list if it has several outputs.
            values: `Target.values` of the rows.
        """

    def figures(self, features: tf.Tensor, outputs: Any, values: tf.Tensor) -> tf.Tensor:
        """Return a figure for each row [B], float32, whose mean people follow; see `losses`."""

    def answers(self, features: keras.KerasTensor, outputs: Any) -> keras.KerasTensor:
        """Turn what the network says into the answers that its head decodes."""


class CrossEntropy:
    """Of one class per row, from one output per class; see `Objective`.

    Args:
        class_weights: How much a row of each class counts.
    """

    figure = "accuracy"

    def __init__(self, class_weights: FloatArray) -> None:
        self._class_weights = class_weights

    def losses(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """See `Objective`."""
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=values, logits=outputs)
        return losses * tf.gather(self._class_weights, values)

    def figures(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """See `Objective`: 1 for the true class, else 0."""
        return tf.cast(tf.equal(tf.argmax(outputs, axis=1), values), tf.float32)

    def answers(self, features: keras.KerasTensor, outputs: keras.KerasTensor) -> keras.KerasTensor:
        """See `Objective`: probabilities."""
        return keras.layers.Softmax()(outputs)


class SquaredError:
    """Of one or several numbers per row, standardised; see `Objective`.

    Args:
        mean: Of the numbers of the training part.
        deviation: Their standard deviation, over 0.
    """

    figure = "mae"

    def __init__(self, mean: float, deviation: float) -> None:
        self._mean = mean
        self._deviation = deviation

    def losses(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """See `Objective`."""
        return tf.reduce_mean(tf.square(outputs - (values - self._mean) / self._deviation), axis=1)

    def figures(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """See `Objective`: how far off the numbers are, in their own unit."""
        return tf.reduce_mean(tf.abs(outputs * self._deviation + self._mean - values), axis=1)

    def answers(self, features: keras.KerasTensor, outputs: keras.KerasTensor) -> keras.KerasTensor:
        """See `Objective`: numbers in their own unit."""
        return keras.layers.Rescaling(self._deviation, self._mean)(outputs)


class Reconstruction:
    """Of features by features, as near as a network can tell them again; see `Objective`."""

    figure = "mae"

    def losses(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """See `Objective`: the mean squared error over the features; `values` teach nothing."""
        return tf.reduce_mean(tf.square(outputs - features), axis=1)

    def figures(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """See `Objective`: the mean absolute error over the features."""
        return tf.reduce_mean(tf.abs(outputs - features), axis=1)

    def answers(self, features: keras.KerasTensor, outputs: keras.KerasTensor) -> keras.KerasTensor:
        """See `Objective`: the losses, [B, 1]."""
        return keras.ops.mean(keras.ops.square(outputs - features), axis=1, keepdims=True)


class ForecastError(SquaredError):
    """Of the numbers that come next, told as their distance to the last one seen.

    So a network that says nothing repeats that one. The features are [B, step, channel], and the
    first channel is what is forecast.
    """

    def losses(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """See `Objective`."""
        return super().losses(features, outputs + features[:, -1, :1], values)

    def figures(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """See `Objective`."""
        return super().figures(features, outputs + features[:, -1, :1], values)

    def answers(self, features: keras.KerasTensor, outputs: keras.KerasTensor) -> keras.KerasTensor:
        """See `Objective`."""
        return super().answers(features, outputs + features[:, -1, :1])


class LabelCrossEntropy:
    """Of any number of labels per row, from one output per label; see `Objective`.

    Args:
        without: How much a row without each label counts, [K].
        with_it: How much a row with it does, [K].
    """

    figure = "subset_accuracy"

    def __init__(self, without: FloatArray, with_it: FloatArray) -> None:
        self._without = without
        self._with_it = with_it

    def losses(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """See `Objective`: the mean over the labels."""
        losses = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(values, tf.float32), outputs)
        weights = tf.where(values > 0, self._with_it, self._without)
        return tf.reduce_mean(losses * weights, axis=1)

    def figures(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """See `Objective`: 1 if all labels are right, else 0."""
        return tf.cast(tf.reduce_all((outputs >= 0) == (values > 0), axis=1), tf.float32)

    def answers(self, features: keras.KerasTensor, outputs: keras.KerasTensor) -> keras.KerasTensor:
        """See `Objective`: probabilities."""
        return keras.layers.Activation("sigmoid")(outputs)


class BatchSoftmax:
    """Of the item that a user took among those that others of the batch took; see `Objective`.

    The items of a batch are a sample in which those taken often are found more often. Yi et al.
    (2019) take the logarithm of that from the scores for training. Here scores are products of
    vectors plus the logarithm of the share of an item: that cancels, so that vectors learn only how
    users differ from the average one.

    Args:
        log_shares: Of each item in what is taken: natural logarithms.
        taken: Pairs [N, 2] of a user and an item that shall not count against the item of a row.
    """

    figure = "batch_accuracy"

    def __init__(self, log_shares: FloatArray, taken: NDArray[np.int64]) -> None:
        self._log_shares = log_shares
        keys = taken @ np.array([len(log_shares), 1])
        self._taken = np.concatenate([[-1], np.unique(keys)])  # never empty

    def losses(self, features: tf.Tensor, outputs: Any, values: tf.Tensor) -> tf.Tensor:
        """See `Objective`."""
        products = self._products(outputs, values)
        own = tf.range(tf.shape(products)[0])
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=own, logits=products)

    def figures(self, features: tf.Tensor, outputs: Any, values: tf.Tensor) -> tf.Tensor:
        """See `Objective`: 1 if no item of another row fits better, else 0."""
        products = self._products(outputs, values)
        best = tf.reduce_max(products, axis=1)
        return tf.cast(tf.equal(tf.linalg.diag_part(products), best), tf.float32)

    def answers(self, features: keras.KerasTensor, outputs: Any) -> keras.KerasTensor:
        """See `Objective`: the number of the user, then the score of each item."""
        users, items = outputs
        products = keras.ops.matmul(users, keras.ops.transpose(items))
        return keras.ops.concatenate([features, products + self._log_shares], axis=1)

    def _products(self, outputs: Any, values: tf.Tensor) -> tf.Tensor:
        """Return how well each user of a batch fits the item of each row [B, B].

        Far from it for items of other rows that are the same, or taken by the user.
        """
        users, items = outputs
        numbers, codes = values[:, 0], values[:, 1]
        products = tf.matmul(users, tf.gather(items, codes), transpose_b=True)
        keys = numbers[:, None] * len(self._log_shares) + codes[None, :]
        places = tf.searchsorted(self._taken, tf.reshape(keys, [-1]), side="right") - 1
        taken = tf.equal(tf.reshape(tf.gather(self._taken, places), tf.shape(keys)), keys)
        others = tf.logical_or(taken, tf.equal(codes[:, None], codes[None, :]))
        others = tf.linalg.set_diag(others, tf.zeros_like(codes, tf.bool))
        return tf.where(others, -1e9, products)
