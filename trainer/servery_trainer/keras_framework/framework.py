"""Keras on TensorFlow, behind the port of frameworks."""

from collections.abc import Collection, Sequence
from importlib.metadata import version
from typing import Any, Final

import keras
import tensorflow as tf
from numpy.typing import NDArray

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.frameworks import Answering, Learner
from servery_trainer.hyperparameters import Training
from servery_trainer.keras_framework import families
from servery_trainer.keras_framework.answering import KerasAnswering
from servery_trainer.keras_framework.criteria import criterion
from servery_trainer.keras_framework.learner import KerasLearner
from servery_trainer.networks import Family
from servery_trainer.objectives import Objective
from servery_trainer.preprocessing import FloatArray
from servery_trainer.spec import ROOT

_LIBRARIES: Final = ("keras", "tf2onnx")


class Keras:
    """See `frameworks.Framework`."""

    def libraries(self) -> dict[str, str]:
        """See `Framework`."""
        return {"tensorflow": tf.__version__} | {name: version(name) for name in _LIBRARIES}

    def configure(self, threads: int) -> None:
        """See `Framework`."""
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.config.experimental.enable_op_determinism()

    def build(
        self, family: Family, shape: tuple[int, ...], classes: int, vocabulary: int, seed: int
    ) -> keras.Model:
        """See `Framework`."""
        keras.utils.set_random_seed(seed)
        return families.build(family, shape, classes, vocabulary)

    def last_layer(self, network: keras.Model) -> Collection[int]:
        """See `Framework`."""
        layer = network
        while isinstance(layer, keras.Model):  # One may be a layer of another.
            layer = next(inner for inner in reversed(layer.layers) if inner.weights)
        own = {id(variable) for variable in layer.weights}
        return {place for place, variable in enumerate(network.weights) if id(variable) in own}

    def learner(
        self, network: keras.Model, objective: Objective, settings: Training, values: NDArray[Any]
    ) -> Learner:
        """See `Framework`.

        Raises:
            FieldInvalidError: Steps are to be in mixed precision, and there is no GPU.
        """
        half = settings.precision == pb.PRECISION_MIXED_FLOAT16
        if half and not tf.config.list_physical_devices("GPU"):
            rule = "be PRECISION_FLOAT32: the trainer has no GPU, and others are slower in halves"
            raise FieldInvalidError(f"{ROOT}.training.precision", "PRECISION_MIXED_FLOAT16", rule)
        return KerasLearner(network, criterion(objective), settings, values)

    def answering(
        self,
        networks: Sequence[keras.Model],
        objective: Objective,
        weights: FloatArray | None = None,
    ) -> Answering:
        """See `Framework`."""
        return KerasAnswering(networks, criterion(objective), weights)
