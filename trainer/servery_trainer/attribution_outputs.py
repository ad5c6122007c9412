"""What a graph that explains gives out: attributions told by the raw inputs, and what they explain.

Features of one column are added up, so that the attributions of all inputs add up to what the
explained answer differs by from that of the baseline.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper

from servery_trainer.encoders import CategoryEncoder, DateEncoder
from servery_trainer.gradients.emitter import UnsupportedError
from servery_trainer.heads import Output
from servery_trainer.integrated_gradients import Attribution
from servery_trainer.preprocessing import (
    ArrayPreprocessing,
    JoinedPreprocessing,
    Preprocessing,
    TablePreprocessing,
)
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
class Tail:
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


def teller(preprocessing: Preprocessing, before: str) -> Callable[[str, Tail], None]:
    """Return what gives out, from what each feature adds, what each input does.

    Args:
        preprocessing: From inputs to features.
        before: What the names of the tensors inside of it start with.

    Raises:
        UnsupportedError: It is of a kind that is not explained.
    """
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


def _tell_columns(values: str, columns: Sequence[tuple[str, int]], tail: Tail) -> None:
    sizes = [width for _, width in columns]
    parts = [f"{tail.prefix}column{place}" for place in range(len(columns))]
    tail.nodes.append(helper.make_node("Split", [values, tail.constant(sizes)], parts, axis=1))
    for (column, width), part in zip(columns, parts, strict=True):
        total = part
        if width != 1:
            total = tail.add("ReduceSum", part, tail.constant([1]), keepdims=1)
        tail.give(total, f"{ATTRIBUTION}{column}", f"what column `{column}` adds", 1)


def _tell_bag(values: str, tokenizer: Tokenizer, before: str, tail: Tail) -> None:
    """Share what a word adds among the places where it stands."""
    counts = tail.add("Max", f"{before}counts", tail.constant(1, np.float32))
    shares = tail.add("Div", values, counts)
    by_number = tail.add("Pad", shares, tail.constant([0, FIRST_WORD, 0, 0]))
    _tell_words(
        tail.add("GatherElements", by_number, f"{before}ids", axis=1), tokenizer, before, tail
    )


def _tell_words(values: str, tokenizer: Tokenizer, before: str, tail: Tail) -> None:
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


def tell_gap(found: Attribution, tail: Tail) -> None:
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
