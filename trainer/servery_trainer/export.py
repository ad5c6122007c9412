"""From a trained network to the one graph that is served. For the process of a job only."""

from collections.abc import Sequence
from typing import Final

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from numpy.typing import NDArray
from onnx import compose, helper, version_converter

from servery_trainer import tf2onnx_handlers  # noqa: F401  registers operators
from servery_trainer.heads import Head
from servery_trainer.objectives import Objective
from servery_trainer.preprocessing import BATCH, FloatArray, Preprocessing

OPSET: Final = 18  # the newest that tf2onnx writes
ML_OPSET: Final = 3
IR_VERSION: Final = 9  # of opset 20

_FEATURES: Final = "features"
_ANSWERS: Final = "answers"


class ConversionError(Exception):
    """The converter wrote a graph that is not the one that was asked for. A bug, not bad input."""


def answering(networks: Sequence[keras.Model], objective: Objective) -> keras.Model:
    """Wrap networks in a flat model from features to answers, the form tf2onnx reads best.

    Args:
        networks: From features to outputs, alike; of several, the answers are averaged.
        objective: What they were fitted on.
    """
    shape = networks[0].input_shape
    features = keras.Input(batch_shape=shape, dtype="float32", name=_FEATURES)
    each = [objective.answers(features, network(features, training=False)) for network in networks]
    answers = keras.layers.Average()(each) if len(each) > 1 else each[0]
    return keras.Model(features, keras.layers.Identity(name=_ANSWERS)(answers))


def predict(
    model: keras.Model, preprocessing: Preprocessing, inputs: dict[str, NDArray[np.generic]]
) -> FloatArray:
    """Return the answers to raw inputs, by Keras and NumPy.

    Args:
        model: What `answering` returned.
        preprocessing: What the network was trained behind.
        inputs: By name; at least one row.
    """
    rows = len(next(iter(inputs.values())))
    parts = []
    for start in range(0, rows, 256):
        batch = {name: values[start : start + 256] for name, values in inputs.items()}
        parts.append(model(preprocessing.apply(batch), training=False).numpy())
    return np.concatenate(parts)


def to_onnx(
    answering_model: keras.Model, preprocessing: Preprocessing, head: Head
) -> onnx.ModelProto:
    """Write preprocessing, network and the decoding of answers as one ONNX graph.

    Args:
        answering_model: What `answering` returned.
        preprocessing: What the network was trained behind.
        head: What decodes its answers.

    Returns:
        A checked model with the raw inputs and the outputs of `head`.

    Raises:
        ConversionError: The converter failed without saying so.
    """
    outer = preprocessing.to_onnx("", "")
    network = _convert(answering_model)
    opset = max(outer.opset, OPSET)
    if opset > OPSET:  # all of a graph is of one version
        network = version_converter.convert_version(network, opset)
    prefix = _unused_prefix([value.name for value in outer.inputs])
    network = compose.add_prefix(network, prefix)
    first = preprocessing.to_onnx(f"{prefix}{_FEATURES}", f"{prefix}preprocessing/")
    last = head.to_onnx(f"{prefix}{_ANSWERS}", prefix)
    graph = helper.make_graph(
        [*first.nodes, *network.graph.node, *last.nodes],
        "model",
        first.inputs,
        [
            helper.make_tensor_value_info(
                output.name, helper.np_dtype_to_tensor_dtype(output.dtype), [BATCH, *output.shape]
            )
            for output in head.outputs
        ],
        [*first.initializers, *network.graph.initializer, *last.initializers],
    )
    versions = {"": opset, "ai.onnx.ml": ML_OPSET}
    model = helper.make_model(
        graph,
        opset_imports=[
            helper.make_opsetid(domain, versions[domain])
            for domain in sorted({node.domain for node in graph.node})
        ],
        ir_version=IR_VERSION,
        producer_name="servery",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _convert(model: keras.Model) -> onnx.ModelProto:
    """Convert the network alone: from features to answers."""
    signature = [tf.TensorSpec(model.input_shape, tf.float32, name=_FEATURES)]
    network: onnx.ModelProto
    network, _ = tf2onnx.convert.from_keras(model, input_signature=signature, opset=OPSET)
    try:  # tf2onnx logs what it cannot convert and goes on
        onnx.checker.check_model(network)
    except onnx.checker.ValidationError as error:
        raise ConversionError(f"the converted network is invalid: {error}") from error
    inputs = [value.name for value in network.graph.input]
    outputs = [value.name for value in network.graph.output]
    if inputs != [_FEATURES] or outputs != [_ANSWERS]:
        raise ConversionError(f"the converted network goes from {inputs} to {outputs}")
    if any(node.domain for node in network.graph.node) or network.functions:
        raise ConversionError("the converted network needs operators beyond standard ONNX")
    del network.graph.value_info[:]
    return network


def _unused_prefix(names: Sequence[str]) -> str:
    """Return a prefix that keeps inner tensors apart from inputs, whatever these are called."""
    prefix = "_"
    while any(name.startswith(prefix) for name in names):
        prefix += "_"
    return f"{prefix}/"
