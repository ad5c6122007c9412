"""Fits a Keras network step by step.

Not by Keras' `fit`: these steps can be run by several workers as they are (Keras 3's `fit` fails
under MultiWorkerMirroredStrategy), and training can be stopped after any of them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import keras
import tensorflow as tf
from numpy.typing import NDArray

from servery.trainer.v1 import training_pb2
from servery_trainer.checkpoints import Arrays
from servery_trainer.hyperparameters import Training
from servery_trainer.keras_framework.criteria import Criterion
from servery_trainer.preprocessing import FloatArray


class KerasLearner:
    """See `frameworks.Learner`.

    Args:
        network: From features to outputs; changed in place.
        criterion: What to fit it on.
        settings: How.
        values: `Target.values`, for their shape and type.
    """

    def __init__(
        self, network: keras.Model, criterion: Criterion, settings: Training, values: NDArray[Any]
    ) -> None:
        self._network = network
        self._optimizer = _optimizer(settings)
        self._optimizer.build(network.trainable_variables)
        self._learn, self._judge = _steps(
            network,
            criterion,
            self._optimizer,
            tf.TensorSpec([None, *values.shape[1:]], values.dtype),
            settings.l2,
        )

    def learn(self, features: FloatArray, values: NDArray[Any]) -> tuple[float, float]:
        """See `Learner`."""
        loss, figure = self._learn(features, values)
        return float(loss), float(figure)

    def judge(self, features: FloatArray, values: NDArray[Any]) -> tuple[float, float]:
        """See `Learner`."""
        loss, figure = self._judge(features, values)
        return float(loss), float(figure)

    def set_learning_rate(self, rate: float) -> None:
        """See `Learner`."""
        self._optimizer.learning_rate.assign(rate)

    def state(self) -> Mapping[str, Arrays]:
        """See `Learner`; the variables of the network include the seeds of its random layers."""
        return {
            name: [variable.numpy() for variable in variables]
            for name, variables in self._variables.items()
        }

    def restore(self, state: Mapping[str, Arrays]) -> None:
        """See `Learner`."""
        for name, variables in self._variables.items():
            for variable, array in zip(variables, state[name], strict=True):
                variable.assign(array)

    @property
    def _variables(self) -> dict[str, list[Any]]:
        return {"network": self._network.variables, "optimizer": self._optimizer.variables}


Step = Callable[[FloatArray, NDArray[Any]], tuple[tf.Tensor, tf.Tensor]]


@contextmanager
def _halves(network: keras.Model) -> Iterator[None]:
    """Let all layers compute in 16-bit floats while a step is compiled; no weight changes."""
    layers = list(network._flatten_layers())  # noqa: SLF001 no other way to layers inside layers
    policies = [layer.dtype_policy for layer in layers]
    for layer in layers:
        layer.dtype_policy = "mixed_float16"
    try:
        yield
    finally:
        for layer, policy in zip(layers, policies, strict=True):
            layer.dtype_policy = policy


def _optimizer(settings: Training) -> keras.optimizers.Optimizer:
    plain = _plain_optimizer(settings)
    if settings.precision == training_pb2.PRECISION_MIXED_FLOAT16:
        return keras.optimizers.LossScaleOptimizer(plain)
    return plain


def _plain_optimizer(settings: Training) -> keras.optimizers.Optimizer:
    options = {
        "learning_rate": settings.learning_rate,
        "global_clipnorm": settings.max_gradient_norm or None,
    }
    match settings.optimizer:
        case training_pb2.OPTIMIZER_ADAMW:
            return keras.optimizers.AdamW(weight_decay=settings.weight_decay, **options)
        case training_pb2.OPTIMIZER_SGD:
            return keras.optimizers.SGD(momentum=settings.momentum, **options)
        case _:
            return keras.optimizers.Adam(**options)


def _steps(
    network: keras.Model,
    criterion: Criterion,
    optimizer: keras.optimizers.Optimizer,
    values: tf.TensorSpec,
    l2: float,
) -> tuple[Step, Step]:
    """Compile one step of learning and one of judging; each returns sums of losses and figures.

    Steps of learning are in mixed precision if the optimizer scales the loss.
    """
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    signature = [tf.TensorSpec([None, *network.input_shape[1:]], tf.float32), values]
    kernels = [variable for variable in network.trainable_variables if len(variable.shape) > 1]

    def outcome(
        features: tf.Tensor, outputs: tf.Tensor, values: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        return (
            tf.reduce_sum(criterion.losses(features, outputs, values)),
            tf.reduce_sum(criterion.figures(features, outputs, values)),
        )

    def learn(features: tf.Tensor, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            with _halves(network) if scales else nullcontext():
                outputs = network(features, training=True)
            outputs = tf.nest.map_structure(lambda said: tf.cast(said, tf.float32), outputs)
            loss, figure = outcome(features, outputs, values)
            minimised = loss / tf.cast(tf.shape(features)[0], tf.float32)
            if l2:
                squares = [tf.reduce_sum(tf.square(kernel)) for kernel in kernels]
                minimised += l2 * tf.add_n(squares)
            if scales:
                minimised = optimizer.scale_loss(minimised)
        optimizer.apply(tape.gradient(minimised, network.trainable_variables))
        return loss, figure

    def judge(features: tf.Tensor, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return outcome(features, network(features, training=False), values)

    compiled = tf.function(learn, input_signature=signature)
    return compiled, tf.function(judge, input_signature=signature)
