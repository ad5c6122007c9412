"""Trained Keras networks, asked and converted."""

from collections.abc import Sequence

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

from servery_trainer.frameworks import ANSWERS, FEATURES, OPSET
from servery_trainer.keras_framework import tf2onnx_handlers  # noqa: F401  registers operators
from servery_trainer.keras_framework.criteria import Criterion
from servery_trainer.preprocessing import FloatArray


class KerasAnswering:
    """See `frameworks.Answering`: a flat model, the form tf2onnx reads best.

    Args:
        networks: From features to outputs.
        criterion: What they were fitted on.
        weights: See `Framework.answering`.
    """

    def __init__(
        self,
        networks: Sequence[keras.Model],
        criterion: Criterion,
        weights: FloatArray | None,
    ) -> None:
        shape = networks[0].input_shape
        features = keras.Input(batch_shape=shape, dtype="float32", name=FEATURES)
        each = [
            criterion.answers(features, network(features, training=False)) for network in networks
        ]
        if weights is not None:
            answers = keras.layers.Add()(
                [answer * float(weight) for answer, weight in zip(each, weights, strict=True)]
            )
        else:
            answers = keras.layers.Average()(each) if len(each) > 1 else each[0]
        self._model = keras.Model(features, keras.layers.Identity(name=ANSWERS)(answers))

    def predict(self, features: FloatArray) -> FloatArray:
        """See `Answering`."""
        return np.asarray(self._model(features, training=False))

    def to_onnx(self) -> onnx.ModelProto:
        """See `Answering`; what tf2onnx cannot convert it logs and leaves as it is."""
        signature = [tf.TensorSpec(self._model.input_shape, tf.float32, name=FEATURES)]
        network: onnx.ModelProto
        network, _ = tf2onnx.convert.from_keras(self._model, input_signature=signature, opset=OPSET)
        return network
