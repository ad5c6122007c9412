"""What a graph that explains gives out: integrated gradients, told by the raw inputs.

Features of one column are added up, so that the attributions of all inputs add up to what the
explained answer differs by from that of the baseline.

Shape suffixes: B rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper

from servery_trainer.anomalies import Anomalies
from servery_trainer.classification import Classification
from servery_trainer.encoders import CategoryEncoder, DateEncoder
from servery_trainer.export import unused_prefix
from servery_trainer.forecast import Forecast
from servery_trainer.frameworks import ANSWERS, FEATURES
from servery_trainer.gradients.emitter import UnsupportedError
from servery_trainer.gradients.step import reads
from servery_trainer.heads import Head, Output
from servery_trainer.integrated_gradients import Attribution, integrated_gradients
from servery_trainer.multi_label import MultiLabel
from servery_trainer.preprocessing import (
    BATCH,
    ArrayPreprocessing,
    JoinedPreprocessing,
    Preprocessing,
    TablePreprocessing,
    initializers,
)
from servery_trainer.regression import Regression
from servery_trainer.texts import FIRST_WORD, BagPreprocessing, Tokenizer, TokenPreprocessing

ATTRIBUTION: Final = "attribution."
"""What the name of the output of an input starts with."""

TARGET: Final = "explained.target"
SCORE: Final = "explained.score"
BASELINE_SCORE: Final = "explained.baseline_score"
GAP: Final = "explained.completeness_gap"
WORDS: Final = "explained.words"

_NOISE: Final = 1e-3
"""Gaps are shares of at least so much of the score: what 32-bit floats round is no gap."""


@dataclass(slots=True)
class _Tail:
    """The last nodes of the graph, in the making."""

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    outputs: list[Output] = field(default_factory=list)

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Write a node; return the name of its output."""
        name = output or f"{self.prefix}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """Return the name of a constant."""
        name = f"{self.prefix}constant{len(self.constants)}"
        self.constants[name] = np.array(value, dtype)
        return name

    def give(self, tensor: str, name: str, meaning: str, *shape: int, dtype: Any = "f4") -> None:
        """Make a tensor an output."""
        self.add("Identity", tensor, output=name)
        self.outputs.append(Output(name=name, dtype=np.dtype(dtype), shape=shape, meaning=meaning))


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
    tail = _Tail(f"{prefix}explained/")
    tell = _teller(preprocessing, before)
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
    _tell_gap(found, tail)
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


def _teller(preprocessing: Preprocessing, before: str) -> Callable[[str, _Tail], None]:
    """Return what gives out, from what each feature adds, what each input does."""
    match preprocessing:
        case ArrayPreprocessing(input=name, shape=shape):
            meaning = f"what each number of `{name}` adds"
            return lambda values, tail: tail.give(values, f"{ATTRIBUTION}{name}", meaning, *shape)
        case TokenPreprocessing(tokenizer=tokenizer):
            return lambda values, tail: _tell_words(values, tokenizer, before, tail)
        case BagPreprocessing(tokenizer=tokenizer):
            return lambda values, tail: _tell_bag(values, tokenizer, before, tail)
    columns = list(_columns(preprocessing))
    return lambda values, tail: _tell_columns(values, columns, tail)


def _columns(preprocessing: Preprocessing) -> Iterator[tuple[str, int]]:
    """Yield the columns in the order of their features, and how many each has."""
    match preprocessing:
        case TablePreprocessing(columns=columns):
            yield from ((column, 1) for column in columns)
        case CategoryEncoder(column=column) | DateEncoder(column=column):
            yield column, preprocessing.feature_shape[0]
        case JoinedPreprocessing(parts=parts):
            for part in parts:
                yield from _columns(part)
        case _:
            raise UnsupportedError("inputs of this kind are not explained")


def _tell_columns(values: str, columns: Sequence[tuple[str, int]], tail: _Tail) -> None:
    sizes = [width for _, width in columns]
    parts = [f"{tail.prefix}column{place}" for place in range(len(columns))]
    tail.nodes.append(helper.make_node("Split", [values, tail.constant(sizes)], parts, axis=1))
    for (column, width), part in zip(columns, parts, strict=True):
        total = part
        if width != 1:
            total = tail.add("ReduceSum", part, tail.constant([1]), keepdims=1)
        tail.give(total, f"{ATTRIBUTION}{column}", f"what column `{column}` adds", 1)


def _tell_bag(values: str, tokenizer: Tokenizer, before: str, tail: _Tail) -> None:
    """Share what a word adds among the places where it stands."""
    counts = tail.add("Max", f"{before}counts", tail.constant(1, np.float32))
    shares = tail.add("Div", values, counts)
    by_number = tail.add("Pad", shares, tail.constant([0, FIRST_WORD, 0, 0]))
    _tell_words(
        tail.add("GatherElements", by_number, f"{before}ids", axis=1), tokenizer, before, tail
    )


def _tell_words(values: str, tokenizer: Tokenizer, before: str, tail: _Tail) -> None:
    length, column = tokenizer.length, tokenizer.column
    nothing = tail.add(
        "Where",
        tail.constant(np.zeros((1, length)), bool),
        column,
        tail.constant([""], object),
    )
    enough = tail.add("Concat", f"{before}tokens", nothing, axis=1)
    bounds = [tail.constant([n]) for n in (0, length, 1)]
    words = tail.add("Slice", enough, *bounds)
    meaning = f"what each word of `{column}` adds"
    tail.give(values, f"{ATTRIBUTION}{column}", meaning, length)
    tail.give(words, WORDS, "the words, then empty texts", length, dtype=object)


def _tell_gap(found: Attribution, tail: _Tail) -> None:
    """Give out how much the attributions miss, as a share of the sum of their absolute values.

    Or of a thousandth of the score, if that is more: what 32-bit floats round is no gap.
    """
    flat = tail.add("Reshape", found.values, tail.constant([0, -1]))
    total, spread = (
        tail.add("ReduceSum", tensor, tail.constant([1]), keepdims=1)
        for tensor in (flat, tail.add("Abs", flat))
    )
    change = tail.add("Sub", found.score, found.baseline_score)
    missing = tail.add("Abs", tail.add("Sub", total, change))
    ends = [tail.add("Abs", score) for score in (found.score, found.baseline_score)]
    floor = tail.add("Mul", tail.add("Max", *ends), tail.constant(_NOISE, np.float32))
    tiny = tail.constant(np.finfo(np.float32).tiny, np.float32)
    gap = tail.add("Div", missing, tail.add("Max", spread, floor, tiny))
    meaning = "how far the attributions are from adding up, as a share of their absolute sum"
    tail.give(gap, GAP, meaning, 1)
