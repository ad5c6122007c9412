"""Finds out whether a graph computes every row by itself, so that requests may share a run."""

import math
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from servery_inference.bfloat16 import to_float32
from servery_inference.datatypes import BFLOAT16, Datatype
from servery_inference.engine import Engine, RunFailedError
from servery_inference.golden import Golden, relative_error
from servery_inference.request import Array
from servery_inference.signature import Signature, Tensor

_ROWS: Final = 3
_SIDES: Final = (8, 1, 32, 224)
"""Sizes to try for free axes: graphs have ideas of their own about what is too small."""

_MAX_ELEMENTS: Final = 1 << 22
_BFLOAT16_EPSILON: Final = 2.0**-7
_SEED: Final = 0


def mixing(engine: Engine, proof: Golden | None) -> str:
    """Compare the answers to three rows together with those to each alone.

    Floats may differ by the square root of the precision of their type, or by what the golden rows
    allow if that is more: sums are added up in another order when there are more rows.

    Args:
        engine: A graph whose inputs and outputs have a free first axis.
        proof: Real rows, if there are any.

    Returns:
        Why requests must not share a run; empty if they may.
    """
    for feed in _feeds(engine.signature, proof):
        try:
            together = _run(engine, feed)
            alone = [_run(engine, _row(feed, row)) for row in range(_ROWS)]
        except RunFailedError:
            continue
        for name, whole in together.items():
            parts = [answers[name] for answers in alone]
            precision = _precision(engine.signature.outputs[name].datatype)
            allowed = max(proof.tolerance if proof else 0.0, math.sqrt(precision))
            if not _agree(whole, parts, allowed):
                return f"output '{name}' of a row depends on the rows beside it"
        return ""
    return "the graph refuses made-up rows, so it is not known whether it keeps them apart"


def _feeds(signature: Signature, proof: Golden | None) -> Iterator[Mapping[str, Array]]:
    if proof is not None:
        feed = proof.rows(_ROWS)
        if any((array[0] != array[1]).any() for array in feed.values()):
            yield feed
    for side in _SIDES:
        shapes = {name: _shape(tensor, side) for name, tensor in signature.inputs.items()}
        if sum(math.prod(shape) for shape in shapes.values()) <= _MAX_ELEMENTS:
            yield {name: _varied(signature.inputs[name], shape) for name, shape in shapes.items()}


def _shape(tensor: Tensor, side: int) -> tuple[int, ...]:
    return (_ROWS, *[side if size == -1 else size for size in tensor.shape[1:]])


def _varied(tensor: Tensor, shape: tuple[int, ...]) -> Array:
    """Values that differ from row to row, and that most graphs take."""
    dtype = tensor.datatype.numpy
    if dtype.kind == "f":
        numbers: Array = np.random.default_rng(_SEED).standard_normal(shape).astype(dtype)
        return numbers
    # A row of a table, a number of repetitions, a token: 0 and 1 are seldom out of range.
    flags: Array = np.indices(shape).sum(axis=0) % 2
    if tensor.datatype == BFLOAT16:
        return (flags * 0x3F80).astype(dtype)
    return flags.astype(str).astype(object) if dtype.kind == "O" else flags.astype(dtype)


def _row(feed: Mapping[str, Array], row: int) -> dict[str, Array]:
    return {name: array[row : row + 1] for name, array in feed.items()}


def _run(engine: Engine, feed: Mapping[str, Array]) -> dict[str, Array]:
    outputs = engine.signature.outputs
    values = engine.run(feed, list(outputs))
    return {
        name: to_float32(value) if tensor.datatype == BFLOAT16 else value
        for (name, tensor), value in zip(outputs.items(), values, strict=True)
    }


def _precision(datatype: Datatype) -> float:
    """The gap above 1; 0 for what is no float."""
    if datatype == BFLOAT16:
        return _BFLOAT16_EPSILON
    return float(np.finfo(datatype.numpy).eps) if datatype.numpy.kind == "f" else 0.0


def _agree(whole: Array, parts: list[Array], allowed: float) -> bool:
    expected = (1, *whole.shape[1:])
    if len(whole) != _ROWS or any(part.shape != expected for part in parts):
        return False
    joined = np.concatenate(parts)
    if whole.dtype.kind != "f":
        return bool((whole == joined).all())
    return bool(relative_error(joined, whole).max(initial=0) <= allowed)
