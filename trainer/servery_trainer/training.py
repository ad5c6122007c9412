"""Fits a network. Imports TensorFlow: for the process of a job only.

The loop is our own, not Keras' `fit`: several workers can run it as it is (Keras 3's `fit` fails
under MultiWorkerMirroredStrategy), and it can be stopped at any step.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from servery.trainer.v1 import training_pb2
from servery_rpc.errors import FieldInvalidError
from servery_trainer.examples import Examples
from servery_trainer.hyperparameters import Training
from servery_trainer.preprocessing import FloatArray, Preprocessing
from servery_trainer.spec import ROOT

Report = Callable[[training_pb2.Progress], object]
"""Hears of each step; what it raises ends the job."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of the examples, preprocessed one batch at a time to keep memory small."""

    examples: Examples
    rows: NDArray[np.int64]
    preprocessing: Preprocessing

    def batches(
        self, size: int, rng: np.random.Generator | None = None
    ) -> Iterator[tuple[FloatArray, NDArray[np.int64]]]:
        """Yield features and codes of all rows, in random order if `rng` is given."""
        rows = self.rows if rng is None else rng.permutation(self.rows)
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            yield (
                self.preprocessing.apply(self.examples.take(batch)),
                self.examples.codes_B[batch],
            )


def fit(
    network: keras.Model, train: Part, validation: Part, settings: Training, report: Report
) -> list[training_pb2.Epoch]:
    """Fit `network`, stop early, and leave the weights of the epoch with the best validation loss.

    Args:
        network: From features to logits; changed in place.
        train: What to learn.
        validation: What to stop early by.
        settings: How.
        report: Called after each step; what it raises ends the training.

    Returns:
        What each epoch came to.

    Raises:
        FieldInvalidError: The loss became infinite in the first epoch; names `learning_rate`.
    """
    return _Fit(network, train, validation, settings, report).run()


class _Fit:
    """One run of `fit`."""

    def __init__(
        self,
        network: keras.Model,
        train: Part,
        validation: Part,
        settings: Training,
        report: Report,
    ) -> None:
        self._network = network
        self._train = train
        self._validation = validation
        self._settings = settings
        self._report = report
        self._rng = np.random.Generator(np.random.PCG64(settings.seed))
        self._steps = math.ceil(len(train.rows) / settings.batch_size)
        self._began = time.monotonic()
        self._metrics: dict[str, float] = {}
        self._learn, self._judge = _steps(network, settings.learning_rate)

    def run(self) -> list[training_pb2.Epoch]:
        epochs: list[training_pb2.Epoch] = []
        best_loss, best_weights, waited = math.inf, None, 0
        for number in range(1, self._settings.max_epochs + 1):
            loss, accuracy = self._pass(number)
            validation_loss, validation_accuracy = self._validate()
            if not math.isfinite(loss + validation_loss):
                break  # weights that are NaN stay NaN
            self._metrics |= {"val_loss": validation_loss, "val_accuracy": validation_accuracy}
            self._report(self._progress(number, self._steps, done=number))
            epochs.append(
                training_pb2.Epoch(
                    number=number,
                    loss=loss,
                    accuracy=accuracy,
                    validation_loss=validation_loss,
                    validation_accuracy=validation_accuracy,
                )
            )
            if validation_loss < best_loss:
                best_loss, best_weights, waited = validation_loss, self._network.get_weights(), 0
            else:
                waited += 1
                if waited == self._settings.early_stopping_patience:
                    break
        if best_weights is None:
            raise FieldInvalidError(
                f"{ROOT}.training.learning_rate",
                self._settings.learning_rate,
                "be smaller: the loss became infinite in the first epoch",
            )
        self._network.set_weights(best_weights)
        return epochs

    def _pass(self, number: int) -> tuple[float, float]:
        """Learn from every row once; return mean loss and accuracy, in training mode."""
        losses, right, seen = 0.0, 0, 0
        for step, (features, codes) in enumerate(
            self._train.batches(self._settings.batch_size, self._rng), start=1
        ):
            batch_loss, batch_right = self._learn(features, codes)
            losses += float(batch_loss)
            right += int(batch_right)
            seen += len(codes)
            self._metrics |= {"loss": losses / seen, "accuracy": right / seen}
            if step < self._steps:
                self._report(self._progress(number, step, done=number - 1))
        return losses / seen, right / seen

    def _validate(self) -> tuple[float, float]:
        losses, right = 0.0, 0
        for features, codes in self._validation.batches(max(self._settings.batch_size, 256)):
            batch_loss, batch_right = self._judge(features, codes)
            losses += float(batch_loss)
            right += int(batch_right)
        return losses / len(self._validation.rows), right / len(self._validation.rows)

    def _progress(self, number: int, step: int, done: int) -> training_pb2.Progress:
        steps_done = (number - 1) * self._steps + step
        steps_left = self._settings.max_epochs * self._steps - steps_done
        return training_pb2.Progress(
            phase=training_pb2.PHASE_TRAINING,
            epoch=done,
            max_epochs=self._settings.max_epochs,
            step=step,
            steps_per_epoch=self._steps,
            metrics=self._metrics,
            eta_s=(time.monotonic() - self._began) / steps_done * steps_left,
        )


Step = Callable[[FloatArray, NDArray[np.int64]], tuple[tf.Tensor, tf.Tensor]]


def _steps(network: keras.Model, learning_rate: float) -> tuple[Step, Step]:
    """Compile one step of learning and one of judging; each returns loss sum and number right."""
    optimizer = keras.optimizers.Adam(learning_rate)
    optimizer.build(network.trainable_variables)
    signature = [
        tf.TensorSpec([None, *network.input_shape[1:]], tf.float32),
        tf.TensorSpec([None], tf.int64),
    ]

    def outcome(logits: tf.Tensor, codes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=codes, logits=logits)
        right = tf.equal(tf.argmax(logits, axis=1), codes)
        return tf.reduce_sum(losses), tf.reduce_sum(tf.cast(right, tf.int64))

    def learn(features: tf.Tensor, codes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            loss, right = outcome(network(features, training=True), codes)
            mean = loss / tf.cast(tf.shape(codes)[0], tf.float32)
        optimizer.apply(tape.gradient(mean, network.trainable_variables))
        return loss, right

    def judge(features: tf.Tensor, codes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return outcome(network(features, training=False), codes)

    compiled = tf.function(learn, input_signature=signature)
    return compiled, tf.function(judge, input_signature=signature)
