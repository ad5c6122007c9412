"""The networks a job can train. Imports TensorFlow: for the process of a job only."""

from typing import Final

import keras

from servery_trainer.networks import Convolutional, Dense

PARITY_TOLERANCES: Final[dict[type[Dense] | type[Convolutional], float]] = {
    Dense: 1e-4,
    Convolutional: 1e-4,
}
"""Largest relative error of the converted network; what we saw is below 1e-6."""


def build(family: Dense | Convolutional, shape: tuple[int, ...], classes: int) -> keras.Model:
    """Build a network with random weights; `keras.utils.set_random_seed` decides which.

    Args:
        family: Its kind and sizes.
        shape: Of the features of one row: [features] or, for images, [height, width, channel].
        classes: Number of outputs.

    Returns:
        A model from float32 features [batch, *shape] to logits [batch, classes].
    """
    inputs = keras.Input(shape, dtype="float32", name="features")
    match family:
        case Dense():
            hidden = _dense(family, inputs)
        case Convolutional():
            hidden = _convolutional(family, inputs)
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(hidden))


def _dense(family: Dense, inputs: keras.KerasTensor) -> keras.KerasTensor:
    hidden = inputs if len(inputs.shape) == 2 else keras.layers.Flatten()(inputs)
    for units in family.hidden_units:
        hidden = keras.layers.Dense(units, activation="relu")(hidden)
        hidden = keras.layers.Dropout(family.dropout)(hidden)
    return hidden


def _convolutional(family: Convolutional, inputs: keras.KerasTensor) -> keras.KerasTensor:
    hidden = inputs
    for filters in family.filters:
        hidden = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(hidden)
        if min(hidden.shape[1:3]) >= 4:
            hidden = keras.layers.MaxPooling2D(2)(hidden)
    hidden = keras.layers.Flatten()(hidden)
    hidden = keras.layers.Dense(family.dense_units, activation="relu")(hidden)
    return keras.layers.Dropout(family.dropout)(hidden)
