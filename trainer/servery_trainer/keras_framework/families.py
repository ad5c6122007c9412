"""The networks a job can train, in Keras."""

import keras

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.keras_framework import custom
from servery_trainer.networks import (
    Autoencoder,
    Convolutional,
    Custom,
    Dense,
    Embedding,
    Family,
    Recurrent,
    Transformer,
    TwoTower,
)


def build(family: Family, shape: tuple[int, ...], classes: int, vocabulary: int) -> keras.Model:
    """See `Framework.build`; `keras.utils.set_random_seed` decides the weights."""
    inputs = keras.Input(shape, dtype="float32", name="features")
    match family:
        case Dense():
            hidden = _dense(family, inputs)
        case Convolutional():
            hidden = _convolutional(family, inputs)
        case Embedding():
            hidden = _embedding(family, inputs, vocabulary)
        case Recurrent():
            hidden = _recurrent(family, inputs, vocabulary)
        case Transformer():
            hidden = _transformer(family, inputs, vocabulary)
        case Autoencoder():
            hidden, classes = _autoencoder(family, inputs), shape[0]
        case TwoTower():
            return keras.Model(inputs, _two_towers(family, inputs, classes, vocabulary))
        case Custom():
            return custom.build(family, inputs, classes, vocabulary)
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(hidden))


def _dense(family: Dense, inputs: keras.KerasTensor) -> keras.KerasTensor:
    hidden = inputs if len(inputs.shape) == 2 else keras.layers.Flatten()(inputs)
    for units in family.hidden_units:
        hidden = keras.layers.Dense(units, activation="relu")(hidden)
        hidden = keras.layers.Dropout(family.dropout)(hidden)
    return hidden


def _convolutional(family: Convolutional, inputs: keras.KerasTensor) -> keras.KerasTensor:
    hidden = inputs
    is_image = len(inputs.shape) == 4
    convolution = keras.layers.Conv2D if is_image else keras.layers.Conv1D
    pooling = keras.layers.MaxPooling2D if is_image else keras.layers.MaxPooling1D
    for filters in family.filters:
        hidden = convolution(filters, 3, padding="same", activation="relu")(hidden)
        if min(hidden.shape[1:-1]) >= 4:
            hidden = pooling(2)(hidden)
    hidden = keras.layers.Flatten()(hidden)
    hidden = keras.layers.Dense(family.dense_units, activation="relu")(hidden)
    return keras.layers.Dropout(family.dropout)(hidden)


def _embedding(family: Embedding, inputs: keras.KerasTensor, size: int) -> keras.KerasTensor:
    words = keras.layers.Embedding(size, family.dimension)(inputs)
    hidden = keras.layers.Dropout(family.dropout)(_mean(words, keras.ops.not_equal(inputs, 0)))
    for units in family.hidden_units:
        hidden = keras.layers.Dense(units, activation="relu")(hidden)
        hidden = keras.layers.Dropout(family.dropout)(hidden)
    return hidden


def _recurrent(family: Recurrent, inputs: keras.KerasTensor, size: int) -> keras.KerasTensor:
    steps, there = inputs, None
    if size:
        steps = keras.layers.Embedding(size, family.dimension)(inputs)
        there = keras.ops.not_equal(inputs, 0)
    lstm = family.cell == pb.RECURRENT_CELL_LSTM
    layer = (keras.layers.LSTM if lstm else keras.layers.GRU)(family.units)
    if family.bidirectional:
        layer = keras.layers.Bidirectional(layer)
    hidden = layer(steps, mask=there)
    return keras.layers.Dropout(family.dropout)(hidden)


def _transformer(family: Transformer, inputs: keras.KerasTensor, size: int) -> keras.KerasTensor:
    there = keras.ops.not_equal(inputs, 0) if size else None
    if size:
        steps = keras.layers.Embedding(size, family.dimension)(inputs)
    else:
        steps = keras.layers.Dense(family.dimension)(inputs)
    hidden = keras.layers.Dropout(family.dropout)(_Positions()(steps))
    mask = None if there is None else there[:, None, :]
    for _ in range(family.layers):
        normal = keras.layers.LayerNormalization(epsilon=1e-6)(hidden)
        attention = keras.layers.MultiHeadAttention(family.heads, family.dimension // family.heads)
        seen = attention(normal, normal, attention_mask=mask)
        hidden = hidden + keras.layers.Dropout(family.dropout)(seen)
        normal = keras.layers.LayerNormalization(epsilon=1e-6)(hidden)
        inner = keras.layers.Dense(family.feed_forward_units, activation="gelu")(normal)
        outer = keras.layers.Dense(family.dimension)(inner)
        hidden = hidden + keras.layers.Dropout(family.dropout)(outer)
    return _mean(keras.layers.LayerNormalization(epsilon=1e-6)(hidden), there)


def _autoencoder(family: Autoencoder, inputs: keras.KerasTensor) -> keras.KerasTensor:
    hidden = keras.layers.Dropout(family.dropout)(inputs)
    for place, units in enumerate(family.layers(inputs.shape[1])):
        is_code = place == len(family.hidden_units)
        hidden = keras.layers.Dense(units, activation=None if is_code else "relu")(hidden)
    return hidden


def _two_towers(
    family: TwoTower, inputs: keras.KerasTensor, items: int, users: int
) -> list[keras.KerasTensor]:
    vectors = keras.layers.Embedding(users, family.dimension)(inputs[:, 0])
    known = keras.ops.cast(keras.ops.not_equal(inputs, 0), "float32")
    vectors = vectors * known  # who is unknown fits nothing better than anything else
    return [vectors, _Table(items, family.dimension)(vectors)]


class _Table(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Learned vectors, whatever it is called with."""

    def __init__(self, rows: int, dimension: int) -> None:
        super().__init__()
        self._vectors = self.add_weight(shape=(rows, dimension), initializer="random_normal")

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        return keras.ops.convert_to_tensor(self._vectors)

    def compute_output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self._vectors.shape)


def _mean(steps: keras.KerasTensor, there: keras.KerasTensor | None) -> keras.KerasTensor:
    """Return the mean over the steps that are there, None for all; 0 if there are none."""
    if there is None:
        return keras.ops.mean(steps, axis=1)
    weights = keras.ops.cast(there, "float32")[:, :, None]
    total = keras.ops.sum(steps * weights, axis=1)
    return total / keras.ops.maximum(keras.ops.sum(weights, axis=1), 1)


class _Positions(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Adds a learned vector for each place."""

    def build(self, shape: tuple[int, ...]) -> None:
        self._vectors = self.add_weight(shape=shape[1:], initializer="random_normal")

    def call(self, words: keras.KerasTensor) -> keras.KerasTensor:
        return words + self._vectors
