"""Rules of operators that compute nothing, but put numbers elsewhere."""

from collections.abc import Iterator
from typing import Final

import onnx

from servery_trainer.gradients.emitter import UnsupportedError
from servery_trainer.gradients.step import Rule, Step

Pairs = Iterator[tuple[str, str]]


def _reshape(s: Step) -> Pairs:
    yield s.x, s.emit.reshaped_as(s.gradient, s.x)


def _transpose(s: Step) -> Pairs:
    rank = len(s.shape(s.x))
    axes = s.attribute("perm", [*reversed(range(rank))])
    back = [axes.index(axis) for axis in range(rank)]
    yield s.x, s.like(s.x, "Transpose", s.gradient, perm=back)


def _expand(s: Step) -> Pairs:
    yield s.fitted(0, s.gradient)


def _concat(s: Step) -> Pairs:
    axis = s.attribute("axis", 0)
    lengths = [s.shape(name)[axis] for name in s.node.input]
    if None in lengths:
        raise UnsupportedError("what is joined has parts of unknown length")
    shapes = [s.shape(name) for name in s.node.input]
    sizes = s.emit.integers(*(length for length in lengths if length is not None))
    parts = s.emit.several("Split", [s.gradient, sizes], shapes, axis=axis)
    for place, (name, part) in enumerate(zip(s.node.input, parts, strict=True)):
        if s.active(place):
            yield name, part


def _split(s: Step) -> Pairs:
    pairs = zip(s.node.output, s.told, strict=True)
    parts = [told or s.emit.zeros(output) for output, told in pairs]
    yield s.x, s.like(s.x, "Concat", *parts, axis=s.attribute("axis", 0))


def _selected(s: Step) -> Pairs:
    """Do the same with the places of all numbers: the gradient goes back to these."""
    if any(s.active(place) for place in range(1, len(s.node.input))):
        raise UnsupportedError(f"{s.node.op_type} by computed numbers has no derivative here")
    places = s.emit.reshaped_as(_numbers(s), s.x)
    chosen = onnx.NodeProto()
    chosen.CopyFrom(s.node)
    chosen.ClearField("name")
    chosen.input[0] = places
    chosen.output[:] = [s.emit.name()]
    s.emit.nodes.append(chosen)
    s.emit.shapes[chosen.output[0]] = s.shape(s.y)
    yield s.x, picked(s, s.x, chosen.output[0], s.gradient)


def _numbers(s: Step) -> str:
    """Number the elements of the input, flat."""
    integer = onnx.TensorProto.INT64
    size = s.emit.add("Size", s.x, shape=(), dtype=integer)
    first, step = (s.emit.constant(value, "int64") for value in (0, 1))
    return s.emit.add("Range", first, size, step, shape=(None,), dtype=integer)


def picked(s: Step, source: str, places: str, gradient: str) -> str:
    """Add a gradient up where its numbers came from.

    Args:
        s: Where to write.
        source: What they came from.
        places: Index into all of it, flat, of each number.
        gradient: As long as `places`.
    """
    flat = s.emit.integers(-1)
    zeros = s.emit.add("Reshape", s.emit.zeros(source), flat, shape=(None,))
    where = s.emit.add("Reshape", places, flat, shape=(None,), dtype=onnx.TensorProto.INT64)
    values = s.emit.add("Reshape", gradient, flat, shape=(None,))
    total = s.emit.add(
        "ScatterElements", zeros, where, values, shape=(None,), axis=0, reduction="add"
    )
    return s.emit.reshaped_as(total, source)


def _reverse_sequence(s: Step) -> Pairs:
    options = {each.name: s.attribute(each.name, None) for each in s.node.attribute}
    yield s.x, s.like(s.x, "ReverseSequence", s.gradient, s.node.input[1], **options)


RULES: Final[dict[str, Rule]] = {
    "Concat": _concat,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _selected,
    "GatherElements": _selected,
    "Reshape": _reshape,
    "ReverseSequence": _reverse_sequence,
    "Slice": _selected,
    "Split": _split,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
