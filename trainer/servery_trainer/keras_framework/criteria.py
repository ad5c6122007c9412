"""Objectives, in TensorFlow.

Shape suffixes: B rows, K classes.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import keras
import tensorflow as tf

from servery_trainer import objectives
from servery_trainer.preprocessing import FloatArray


class Criterion(Protocol):
    """An objective as it is computed; see there for what each one is."""

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


def criterion(objective: objectives.Objective) -> Criterion:
    """Return how an objective is computed."""
    match objective:
        case objectives.CrossEntropy():
            return _CrossEntropy(objective)
        case objectives.SquaredError():
            return _SquaredError(objective)
        case objectives.ForecastError():
            return _ForecastError(objective.error, objective.linear)
        case objectives.Reconstruction():
            return _Reconstruction()
        case objectives.LabelCrossEntropy():
            return _LabelCrossEntropy(objective)
        case objectives.BatchSoftmax():
            return _BatchSoftmax(objective)


@dataclass(frozen=True)
class _CrossEntropy:
    objective: objectives.CrossEntropy

    def losses(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=values, logits=outputs)
        return losses * tf.gather(self.objective.class_weights, values)

    def figures(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """1 for the true class, else 0."""
        return tf.cast(tf.equal(tf.argmax(outputs, axis=1), values), tf.float32)

    def answers(self, features: keras.KerasTensor, outputs: keras.KerasTensor) -> keras.KerasTensor:
        """Probabilities."""
        return keras.layers.Softmax()(outputs)


@dataclass(frozen=True)
class _SquaredError:
    objective: objectives.SquaredError

    def losses(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        aims = (values - self.objective.mean) / self.objective.deviation
        return tf.reduce_mean(tf.square(outputs - aims), axis=1)

    def figures(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """How far off the numbers are, in their own unit."""
        numbers = outputs * self.objective.deviation + self.objective.mean
        return tf.reduce_mean(tf.abs(numbers - values), axis=1)

    def answers(self, features: keras.KerasTensor, outputs: keras.KerasTensor) -> keras.KerasTensor:
        """Numbers in their own unit."""
        return keras.layers.Rescaling(self.objective.deviation, self.objective.mean)(outputs)


class _Reconstruction:
    def losses(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """The mean squared error over the features; `values` teach nothing."""
        return tf.reduce_mean(tf.square(outputs - features), axis=1)

    def figures(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """The mean absolute error over the features."""
        return tf.reduce_mean(tf.abs(outputs - features), axis=1)

    def answers(self, features: keras.KerasTensor, outputs: keras.KerasTensor) -> keras.KerasTensor:
        """The losses, [B, 1]."""
        return keras.ops.mean(keras.ops.square(outputs - features), axis=1, keepdims=True)


@dataclass(frozen=True)
class _ForecastError(_SquaredError):
    linear: FloatArray

    def losses(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        return super().losses(features, self._whole(features, outputs), values)

    def figures(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        return super().figures(features, self._whole(features, outputs), values)

    def answers(self, features: keras.KerasTensor, outputs: keras.KerasTensor) -> keras.KerasTensor:
        return super().answers(features, self._whole(features, outputs))

    def _whole(self, features: Any, outputs: Any) -> Any:
        """Return the forecasts of which the network tells a part."""
        return outputs + keras.ops.matmul(features[:, :, 0], self.linear)


@dataclass(frozen=True)
class _LabelCrossEntropy:
    objective: objectives.LabelCrossEntropy

    def losses(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """The mean over the labels."""
        losses = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(values, tf.float32), outputs)
        weights = tf.where(values > 0, self.objective.with_it, self.objective.without)
        return tf.reduce_mean(losses * weights, axis=1)

    def figures(self, features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """1 if all labels are right, else 0."""
        return tf.cast(tf.reduce_all((outputs >= 0) == (values > 0), axis=1), tf.float32)

    def answers(self, features: keras.KerasTensor, outputs: keras.KerasTensor) -> keras.KerasTensor:
        """Probabilities."""
        return keras.layers.Activation("sigmoid")(outputs)


@dataclass(frozen=True)
class _BatchSoftmax:
    objective: objectives.BatchSoftmax

    def losses(self, features: tf.Tensor, outputs: Any, values: tf.Tensor) -> tf.Tensor:
        products = self._products(outputs, values)
        own = tf.range(tf.shape(products)[0])
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=own, logits=products)

    def figures(self, features: tf.Tensor, outputs: Any, values: tf.Tensor) -> tf.Tensor:
        """1 if no item of another row fits better, else 0."""
        products = self._products(outputs, values)
        best = tf.reduce_max(products, axis=1)
        return tf.cast(tf.equal(tf.linalg.diag_part(products), best), tf.float32)

    def answers(self, features: keras.KerasTensor, outputs: Any) -> keras.KerasTensor:
        """The number of the user, then the score of each item."""
        users, items = outputs
        products = keras.ops.matmul(users, keras.ops.transpose(items))
        return keras.ops.concatenate([features, products + self.objective.log_shares], axis=1)

    def _products(self, outputs: Any, values: tf.Tensor) -> tf.Tensor:
        """Return how well each user of a batch fits the item of each row [B, B].

        Far from it for items of other rows that are the same, or taken by the user.
        """
        users, items = outputs
        numbers, codes = values[:, 0], values[:, 1]
        products = tf.matmul(users, tf.gather(items, codes), transpose_b=True)
        known = self.objective.taken_keys()
        keys = numbers[:, None] * len(self.objective.log_shares) + codes[None, :]
        places = tf.searchsorted(known, tf.reshape(keys, [-1]), side="right") - 1
        taken = tf.equal(tf.reshape(tf.gather(known, places), tf.shape(keys)), keys)
        others = tf.logical_or(taken, tf.equal(codes[:, None], codes[None, :]))
        others = tf.linalg.set_diag(others, tf.zeros_like(codes, tf.bool))
        return tf.where(others, -1e9, products)
