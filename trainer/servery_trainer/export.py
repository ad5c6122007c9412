"""From a trained network to the one graph that is served. For the process of a job only."""

from collections.abc import Sequence
from typing import Final

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from numpy.typing import NDArray
from onnx import compose, helper, numpy_helper, version_converter

from servery_trainer import tf2onnx_handlers  # noqa: F401  registers operators
from servery_trainer.preprocessing import BATCH, FloatArray, Preprocessing
from servery_trainer.rows import LABEL_OUTPUT, PROBABILITIES_OUTPUT

OPSET: Final = 18  # the newest that tf2onnx writes
ML_OPSET: Final = 3
IR_VERSION: Final = 9  # of opset 20

_FEATURES: Final = "features"


class ConversionError(Exception):
    """The converter wrote a graph that is not the one that was asked for. A bug, not bad input."""


def with_softmax(network: keras.Model) -> keras.Model:
    """Wrap `network` in a flat model from features to probabilities, the form tf2onnx reads best.

    Args:
        network: From features to logits.
    """
    features = keras.Input(batch_shape=network.input_shape, dtype="float32", name=_FEATURES)
    probabilities = keras.layers.Softmax()(network(features, training=False))
    return keras.Model(features, keras.layers.Identity(name=PROBABILITIES_OUTPUT)(probabilities))


def predict(
    classifier: keras.Model, preprocessing: Preprocessing, inputs: dict[str, NDArray[np.generic]]
) -> FloatArray:
    """Return the probabilities [rows, classes] of raw inputs, by Keras and NumPy.

    Args:
        classifier: What `with_softmax` returned.
        preprocessing: What the network was trained behind.
        inputs: By name; at least one row.
    """
    rows = len(next(iter(inputs.values())))
    parts = []
    for start in range(0, rows, 256):
        batch = {name: values[start : start + 256] for name, values in inputs.items()}
        parts.append(classifier(preprocessing.apply(batch), training=False).numpy())
    return np.concatenate(parts)


def to_onnx(
    classifier: keras.Model, preprocessing: Preprocessing, labels: Sequence[str]
) -> onnx.ModelProto:
    """Write preprocessing, network and label decoding as one ONNX graph.

    Args:
        classifier: What `with_softmax` returned.
        preprocessing: What the network was trained behind.
        labels: The text of each class.

    Returns:
        A checked model with the raw inputs, and the outputs `label` (text [batch, 1]) and
        `probabilities` (float32 [batch, classes]).

    Raises:
        ConversionError: The converter failed without saying so.
    """
    outer = preprocessing.to_onnx("", "")
    network = _convert(classifier)
    opset = max(outer.opset, OPSET)
    if opset > OPSET:  # all of a graph is of one version
        network = version_converter.convert_version(network, opset)
    prefix = _unused_prefix([value.name for value in outer.inputs])
    network = compose.add_prefix(network, prefix)
    head = preprocessing.to_onnx(f"{prefix}{_FEATURES}", f"{prefix}preprocessing/")
    texts = numpy_helper.from_array(np.array(labels, np.object_), f"{prefix}labels")
    index = f"{prefix}index"
    graph = helper.make_graph(
        [
            *head.nodes,
            *network.graph.node,
            helper.make_node(
                "Identity", [f"{prefix}{PROBABILITIES_OUTPUT}"], [PROBABILITIES_OUTPUT]
            ),
            helper.make_node("ArgMax", [PROBABILITIES_OUTPUT], [index], axis=1, keepdims=1),
            helper.make_node("Gather", [texts.name, index], [LABEL_OUTPUT], axis=0),
        ],
        "classifier",
        head.inputs,
        [
            helper.make_tensor_value_info(LABEL_OUTPUT, onnx.TensorProto.STRING, [BATCH, 1]),
            helper.make_tensor_value_info(
                PROBABILITIES_OUTPUT, onnx.TensorProto.FLOAT, [BATCH, len(labels)]
            ),
        ],
        [*head.initializers, *network.graph.initializer, texts],
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


def _convert(classifier: keras.Model) -> onnx.ModelProto:
    """Convert the network alone: from `features` to `probabilities`."""
    signature = [tf.TensorSpec(classifier.input_shape, tf.float32, name=_FEATURES)]
    model: onnx.ModelProto
    model, _ = tf2onnx.convert.from_keras(classifier, input_signature=signature, opset=OPSET)
    try:  # tf2onnx logs what it cannot convert and goes on
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ConversionError(f"the converted network is invalid: {error}") from error
    inputs = [value.name for value in model.graph.input]
    outputs = [value.name for value in model.graph.output]
    if inputs != [_FEATURES] or outputs != [PROBABILITIES_OUTPUT]:
        raise ConversionError(f"the converted network goes from {inputs} to {outputs}")
    if any(node.domain for node in model.graph.node) or model.functions:
        raise ConversionError("the converted network needs operators beyond standard ONNX")
    del model.graph.value_info[:]
    return model


def _unused_prefix(names: Sequence[str]) -> str:
    """Return a prefix that keeps inner tensors apart from inputs, whatever these are called."""
    prefix = "_"
    while any(name.startswith(prefix) for name in names):
        prefix += "_"
    return f"{prefix}/"
