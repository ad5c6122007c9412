"""From trained networks of any framework to the one graph that is served."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import compose, helper, version_converter

from servery_trainer.frameworks import ANSWERS, FEATURES, OPSET, Answering, ConversionError
from servery_trainer.heads import Head
from servery_trainer.preprocessing import BATCH, FloatArray, Preprocessing

ML_OPSET: Final = 3
IR_VERSION: Final = 9  # of opset 20


def predict(
    answering: Answering, preprocessing: Preprocessing, inputs: dict[str, NDArray[np.generic]]
) -> FloatArray:
    """Return the answers to raw inputs, by the framework and NumPy.

    Args:
        answering: The trained networks.
        preprocessing: What they were trained behind.
        inputs: By name; at least one row.
    """
    rows = len(next(iter(inputs.values())))
    parts = []
    for start in range(0, rows, 256):
        batch = {name: values[start : start + 256] for name, values in inputs.items()}
        parts.append(answering.predict(preprocessing.apply(batch)))
    return np.concatenate(parts)


def to_onnx(answering: Answering, preprocessing: Preprocessing, head: Head) -> onnx.ModelProto:
    """Write preprocessing, networks and the decoding of answers as one ONNX graph.

    Args:
        answering: The trained networks.
        preprocessing: What they were trained behind.
        head: What decodes their answers.

    Returns:
        A checked model with the raw inputs and the outputs of `head`.

    Raises:
        ConversionError: The converter failed without saying so.
    """
    outer = preprocessing.to_onnx("", "")
    network = _convert(answering)
    opset = max(outer.opset, OPSET)
    if opset > OPSET:  # all of a graph is of one version
        network = version_converter.convert_version(network, opset)
    prefix = unused_prefix([value.name for value in outer.inputs])
    network = compose.add_prefix(network, prefix)
    first = preprocessing.to_onnx(f"{prefix}{FEATURES}", f"{prefix}preprocessing/")
    last = head.to_onnx(f"{prefix}{ANSWERS}", prefix)
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


def _convert(answering: Answering) -> onnx.ModelProto:
    """Convert the networks alone: from features to answers."""
    network = answering.to_onnx()
    try:  # a converter may log what it cannot convert and go on
        onnx.checker.check_model(network)
    except onnx.checker.ValidationError as error:
        raise ConversionError(f"the converted network is invalid: {error}") from error
    inputs = [value.name for value in network.graph.input]
    outputs = [value.name for value in network.graph.output]
    if inputs != [FEATURES] or outputs != [ANSWERS]:
        raise ConversionError(f"the converted network goes from {inputs} to {outputs}")
    if any(node.domain for node in network.graph.node) or network.functions:
        raise ConversionError("the converted network needs operators beyond standard ONNX")
    del network.graph.value_info[:]
    return network


def unused_prefix(names: Sequence[str]) -> str:
    """Return a prefix that keeps inner tensors apart from inputs, whatever these are called."""
    prefix = "_"
    while any(name.startswith(prefix) for name in names):
        prefix += "_"
    return f"{prefix}/"
