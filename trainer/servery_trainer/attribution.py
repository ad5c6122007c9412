"""The graph that explains what another one answers: integrated gradients behind its inputs."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from servery_trainer.anomalies import Anomalies
from servery_trainer.attribution_outputs import (
    BASELINE_SCORE,
    SCORE,
    TARGET,
    Tail,
    tell_gap,
    teller,
)
from servery_trainer.classification import Classification
from servery_trainer.export import unused_prefix
from servery_trainer.forecast import Forecast
from servery_trainer.frameworks import ANSWERS, FEATURES
from servery_trainer.gradients.emitter import UnsupportedError
from servery_trainer.gradients.step import reads
from servery_trainer.heads import Head, Output
from servery_trainer.integrated_gradients import integrated_gradients
from servery_trainer.multi_label import MultiLabel
from servery_trainer.preprocessing import BATCH, Preprocessing, initializers
from servery_trainer.regression import Regression
from servery_trainer.texts import TokenPreprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A graph that explains the answers of another one."""

    model: onnx.ModelProto
    """Takes what the other one takes."""
    outputs: Sequence[Output]


def explain(
    model: onnx.ModelProto, preprocessing: Preprocessing, head: Head, steps: int
) -> Explanation:
    """Write the graph that explains what `model` answers.

    Args:
        model: What `export.to_onnx` returned.
        preprocessing: What it was written from.
        head: What decodes its answers.
        steps: Points between the baseline and a row, at least 1.

    Raises:
        UnsupportedError: The network, or what is before or behind it, is of a kind that is not
            explained.
    """
    inputs = [value.name for value in model.graph.input]
    prefix = unused_prefix(inputs)
    features, before = f"{prefix}{FEATURES}", f"{prefix}preprocessing/"
    labels, meaning = _explained(head)
    tail = Tail(f"{prefix}explained/")
    tell = teller(preprocessing, before)
    found = integrated_gradients(
        _network(model, features, preprocessing.feature_shape, f"{prefix}{ANSWERS}"),
        features,
        steps=steps,
        words=isinstance(preprocessing, TokenPreprocessing),
        mean=isinstance(head, Forecast),
        prefix=f"{prefix}gradients/",
    )
    tell(found.values, tail)
    if labels:
        target = tail.add("Gather", tail.constant(labels, object), found.place, axis=0)
        tail.give(target, TARGET, "most probable label", 1, dtype=object)
    tail.give(found.score, SCORE, meaning, 1)
    tail.give(found.baseline_score, BASELINE_SCORE, "the same of the baseline", 1)
    tell_gap(found, tail)
    if taken := {output.name for output in tail.outputs} & set(inputs):
        raise UnsupportedError(f"an input is called {min(taken)!r}, as what explains it would be")

    behind = [*found.nodes, *tail.nodes]
    wanted = set().union(*(reads(node) for node in behind))
    nodes = [*_needed(model.graph.node, wanted), *behind]
    read = set().union(*(reads(node) for node in nodes))
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    graph = helper.make_graph(
        nodes,
        "explain",
        model.graph.input,
        [
            helper.make_tensor_value_info(
                output.name, helper.np_dtype_to_tensor_dtype(output.dtype), [BATCH, *output.shape]
            )
            for output in tail.outputs
        ],
        [*kept, *found.initializers, *initializers(tail.constants)],
    )
    explaining = helper.make_model(
        graph,
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
        producer_name=model.producer_name,
    )
    onnx.checker.check_model(explaining, full_check=True)
    return Explanation(model=explaining, outputs=tail.outputs)


def _needed(
    nodes: Sequence[onnx.NodeProto], wanted: set[str], given: Sequence[str] = ()
) -> list[onnx.NodeProto]:
    """Return the nodes that some tensors are made by, from those that are given."""
    missing, found = wanted - set(given), []
    for node in reversed(nodes):
        if missing & set(node.output):
            missing |= reads(node) - set(given)
            found.append(node)
    return found[::-1]


def _network(
    model: onnx.ModelProto, features: str, shape: tuple[int, ...], answers: str
) -> onnx.ModelProto:
    """Cut the network out of the graph that holds it."""
    nodes = _needed(model.graph.node, {answers}, [features])
    read = set().union(*(reads(node) for node in nodes))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(features, onnx.TensorProto.FLOAT, [BATCH, *shape])],
        [helper.make_tensor_value_info(answers, onnx.TensorProto.FLOAT, None)],
        [tensor for tensor in model.graph.initializer if tensor.name in read],
    )
    opsets = [opset for opset in model.opset_import if not opset.domain]
    return helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)


def _explained(head: Head) -> tuple[tuple[str, ...], str]:
    """Return the label of each answer, if they have any, and what the explained number is."""
    match head:
        case Classification(labels=labels) | MultiLabel(labels=labels):
            return labels, f"probability of `{TARGET}`"
        case Regression():
            return (), "`value`"
        case Forecast():
            return (), "mean of `forecast`"
        case Anomalies():
            return (), "`score`"
        case _:
            raise UnsupportedError("answers of this kind are not explained")
