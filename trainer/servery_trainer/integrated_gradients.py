"""Integrated gradients of a converted network, as ONNX nodes.

Sundararajan, Taly and Yan: Axiomatic Attribution for Deep Networks, ICML 2017, arXiv:1703.01365.

In shapes, B are rows, R points on the way from the baseline to a row, K answers.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import compose, helper

from servery_trainer.gradients import recurrent, shapes
from servery_trainer.gradients.emitter import Emitter, Shape, UnsupportedError
from servery_trainer.gradients.reverse import differentiate
from servery_trainer.gradients.step import dependent, reads

MOST_BYTES: Final = 1 << 30
"""Of what a network may compute on the way of one row."""

_FLOAT, _INTEGER = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Nodes that explain rows, and the names of what they make."""

    nodes: Sequence[onnx.NodeProto]
    initializers: Sequence[onnx.TensorProto]
    values: str
    """What each feature adds [B, ...]; if features number words, what each word does."""
    score: str
    """The answer that is explained [B, 1]."""
    baseline_score: str
    """The same answer to the baseline [B, 1]."""
    place: str
    """Which answer it is, INT64 [B, 1]."""


def integrated_gradients(
    network: onnx.ModelProto, features: str, *, steps: int, words: bool, mean: bool, prefix: str
) -> Attribution:
    """Write what explains the largest answer of a network, or the mean of all.

    The baseline is 0: the mean of standardised numbers, no category, no word; if features number
    words, the vector 0 in the place of each. Rows are explained one by one, each with all points of
    its way at once: memory does not depend on how many rows there are.

    Args:
        network: From features [B, ...] to answers [B, K].
        features: Name of the tensor that will hold the features.
        steps: Points of the Gauss-Legendre quadrature, at least 1.
        words: The features number words; gradients are those by the vectors of these.
        mean: Explain the mean of the answers.
        prefix: What the names of all tensors inside shall start with.

    Raises:
        UnsupportedError: The network has something without a derivative here, or takes too much
            memory.
    """
    alphas, shares = _quadrature(steps)
    fixed = compose.add_prefix(_for_rows(network, len(alphas)), f"{prefix}network/")
    emit = Emitter(prefix=prefix)
    (opset,) = (each.version for each in fixed.opset_import if not each.domain)
    (given,), (answers,) = fixed.graph.input, fixed.graph.output
    shape = tuple(each.dim_value for each in given.type.tensor_type.shape.dim)
    emit.shapes[given.name] = shape
    nodes = shapes.constants_of(fixed.graph, emit)
    shapes.infer(nodes, [given.name], emit, opset)
    nodes = recurrent.lowered(nodes, emit)
    points = _vectors(nodes, emit) if words else [given.name]
    _refuse_large(nodes, points, emit)

    row, body = emit.name(), emit.inner()
    emit.shapes[row] = shape[1:]
    ends = {point: f"{point}/end" for point in points}
    way = _way(nodes, row, given.name, ends, alphas, body)
    weights, place = _chosen(answers.name, body, mean=mean)
    scores = _sum(body.add("Mul", answers.name, weights, shape=emit.shapes[answers.name]), 1, body)
    size = emit.integers(*_lengths(emit.shapes[answers.name]))
    seed = body.add("Expand", weights, size, shape=emit.shapes[answers.name])
    gradients = differentiate(way, {answers.name: seed}, points, body)
    values = _integrated(gradients, ends, shares, body, words=words)
    made = [values, _at(scores, len(alphas) - 1, body), _at(scores, 0, body), place]

    return _row_by_row(features, row, made, body, emit)


def _row_by_row(
    features: str, row: str, made: Sequence[str], body: Emitter, emit: Emitter
) -> Attribution:
    """Write the run over all rows, given what is made of each `row`, in the order of the fields."""
    kinds = [_FLOAT, _FLOAT, _FLOAT, _INTEGER]
    graph = helper.make_graph(
        body.nodes,
        emit.name(),
        [helper.make_tensor_value_info(row, _FLOAT, emit.shapes[row])],
        [
            helper.make_tensor_value_info(name, kind, emit.shapes[name])
            for name, kind in zip(made, kinds, strict=True)
        ],
    )
    outputs: list[Shape] = [(None, *emit.shapes[name]) for name in made]
    explained = emit.several("Scan", [features], outputs, body=graph, num_scan_inputs=1)
    read = set().union(*(reads(node) for node in emit.nodes))
    return Attribution(
        nodes=emit.nodes,
        initializers=[emit.constants[name] for name in sorted(read & emit.constants.keys())],
        values=explained[0],
        score=explained[1],
        baseline_score=explained[2],
        place=explained[3],
    )


def _quadrature(steps: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return points from 0 to 1 [R] and their weights [R]; the ends are there and weigh 0."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    alphas = np.concatenate([[0], (points + 1) / 2, [1]])
    shares = np.concatenate([[0], weights / 2, [0]])
    return alphas.astype(np.float32), shares.astype(np.float32)


def _for_rows(network: onnx.ModelProto, rows: int) -> onnx.ModelProto:
    """Fix the number of rows, and have ONNX Runtime compute what follows from it."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(network)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = rows
    fixed.graph.output[0].type.tensor_type.ClearField("shape")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as directory:
        options.optimized_model_filepath = str(Path(directory, "network.onnx"))
        ort.InferenceSession(fixed.SerializeToString(), options, providers=["CPUExecutionProvider"])
        simpler = onnx.load(options.optimized_model_filepath)
    if unknown := {node.domain for node in simpler.graph.node} - {""}:
        raise UnsupportedError(f"operators of {min(unknown)} have no derivative here")
    return simpler


def _vectors(nodes: Sequence[onnx.NodeProto], emit: Emitter) -> list[str]:
    """Return the tensors that hold vectors of words, looked up in tables."""
    found = [
        node.output[0]
        for node in nodes
        if node.op_type == "Gather" and node.input[0] in emit.constants
        if len(emit.shapes[node.input[0]]) == 2 and len(emit.shapes[node.input[1]]) == 2
    ]
    if not found:
        raise UnsupportedError("no vectors of words were found in the network")
    return found


def _refuse_large(nodes: Sequence[onnx.NodeProto], points: Sequence[str], emit: Emitter) -> None:
    smooth = dependent(nodes, points)
    taken = sum(4 * math.prod(_lengths(emit.shapes.get(name, ()))) for name in smooth)
    if taken > MOST_BYTES:
        limit = MOST_BYTES >> 20
        raise UnsupportedError(f"a row would take {taken >> 20} MiB, {limit} are allowed")


def _lengths(shape: Shape) -> list[int]:
    return [length or 1 for length in shape]


def _way(
    nodes: Sequence[onnx.NodeProto],
    row: str,
    given: str,
    ends: dict[str, str],
    alphas: NDArray[np.float32],
    body: Emitter,
) -> list[onnx.NodeProto]:
    """Write the network at each point of the way; return the nodes behind the first points.

    `ends` names each tensor that moves from 0, and where to leave what it moves to.
    """
    shape = body.shapes[given]
    size = body.integers(*_lengths(shape))
    body.nodes.append(helper.make_node("Expand", [row, size], [ends.get(given, given)]))
    way = list[onnx.NodeProto]()

    def move(point: str) -> None:
        whole = body.shapes[ends[point]] = body.shapes[point]
        column = body.constant(alphas.reshape(-1, *(1 for _ in whole[1:])))
        way.append(helper.make_node("Mul", [ends[point], column], [point]))

    if given in ends:
        move(given)
    for node in nodes:
        points = [name for name in node.output if name in ends]
        node.output[:] = [ends.get(name, name) for name in node.output]
        way.append(node)
        for point in points:
            move(point)
    body.nodes += way
    return way


def _chosen(answers: str, body: Emitter, *, mean: bool) -> tuple[str, str]:
    """Return how much each answer counts in what is explained [1, K], and the place of one [1]."""
    rows, count = _lengths(body.shapes[answers])
    if mean:
        first = body.add("Identity", body.integers(0), shape=(1,), dtype=_INTEGER)
        return body.constant([[1 / count] * count]), first
    last = body.add("Gather", answers, body.integers(rows - 1), shape=(1, count), axis=0)
    place = body.add("ArgMax", last, shape=(1,), dtype=_INTEGER, axis=1, keepdims=0)
    numbers = body.constant([range(count)], "int64")
    hit = body.add("Equal", numbers, place, shape=(1, count), dtype=onnx.TensorProto.BOOL)
    return body.add("Cast", hit, shape=(1, count), to=_FLOAT), place


def _integrated(
    gradients: dict[str, str],
    ends: dict[str, str],
    shares: NDArray[np.float32],
    body: Emitter,
    *,
    words: bool,
) -> str:
    """Return how far each number moved times its mean gradient on the way."""
    parts = []
    for point, gradient in gradients.items():
        shape = body.shapes[point]
        along = body.constant(shares.reshape(-1, *(1 for _ in shape[1:])))
        weighed = body.add("Mul", gradient, along, shape=shape)
        axis = body.integers(0)
        mean = body.add("ReduceSum", weighed, axis, shape=shape[1:], keepdims=0)
        end = _at(ends[point], len(shares) - 1, body)
        part = body.add("Mul", mean, end, shape=shape[1:])
        if words:
            last = body.integers(-1)
            part = body.add("ReduceSum", part, last, shape=shape[1:-1], keepdims=0)
        parts.append(part)
    return body.add("Sum", *parts, shape=body.shapes[parts[0]])


def _sum(tensor: str, axis: int, body: Emitter) -> str:
    shape = tuple(1 if place == axis else n for place, n in enumerate(body.shapes[tensor]))
    return body.add("ReduceSum", tensor, body.integers(axis), shape=shape, keepdims=1)


def _at(tensor: str, place: int, body: Emitter) -> str:
    """Return one element along the first axis."""
    index = body.constant(place, "int64")
    return body.add("Gather", tensor, index, shape=body.shapes[tensor][1:], axis=0)
