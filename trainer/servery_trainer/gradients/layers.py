"""Rules of the operators that layers are made of: products, convolutions, pooling, sums."""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import onnx

from servery_trainer.gradients.emitter import Shape, UnsupportedError
from servery_trainer.gradients.rearranging import picked
from servery_trainer.gradients.step import Rule, Step

Pairs = Iterator[tuple[str, str]]


def _matmul(s: Step) -> Pairs:
    left, right = s.node.input
    shapes = s.shape(left), s.shape(right)
    if min(map(len, shapes)) < 2:
        raise UnsupportedError("a product of a vector has no derivative here")
    batch = s.shape(s.y)[:-2]
    if s.active(0):
        whole = (*batch, *shapes[0][-2:])
        product = s.emit.add("MatMul", s.gradient, _turned(s, right), shape=whole)
        yield left, s.emit.summed_to(product, whole, shapes[0])
    if s.active(1):
        whole = (*batch, *shapes[1][-2:])
        product = s.emit.add("MatMul", _turned(s, left), s.gradient, shape=whole)
        yield right, s.emit.summed_to(product, whole, shapes[1])


def _turned(s: Step, name: str) -> str:
    """Swap the last two axes."""
    shape = s.shape(name)
    axes = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    return s.emit.add("Transpose", name, shape=tuple(shape[axis] for axis in axes), perm=axes)


def _gemm(s: Step) -> Pairs:
    left, right = s.node.input[:2]
    alpha, beta = s.attribute("alpha", 1.0), s.attribute("beta", 1.0)
    turned_left, turned_right = s.attribute("transA", 0), s.attribute("transB", 0)
    if s.active(0):
        pair = (right, s.gradient) if turned_left else (s.gradient, right)
        turns = (turned_right, 1) if turned_left else (0, 1 - turned_right)
        yield left, s.like(left, "Gemm", *pair, alpha=alpha, transA=turns[0], transB=turns[1])
    if s.active(1):
        pair = (s.gradient, left) if turned_right else (left, s.gradient)
        turns = (1, turned_left) if turned_right else (1 - turned_left, 0)
        yield right, s.like(right, "Gemm", *pair, alpha=alpha, transA=turns[0], transB=turns[1])
    if s.active(2):
        yield s.fitted(2, s.elementwise("Mul", s.gradient, s.emit.constant(beta)))


def _conv(s: Step) -> Pairs:
    """A transposed convolution with the same kernels (Dumoulin and Visin, 2016)."""
    if s.active(1) or s.active(2):
        raise UnsupportedError("a convolution with computed kernels has no derivative here")
    image, kernel = _known(s, s.shape(s.x)[2:]), _known(s, s.shape(s.node.input[1])[2:])
    seen = _known(s, s.shape(s.y)[2:])
    rank = len(image)
    strides = s.attribute("strides", [1] * rank)
    dilations = s.attribute("dilations", [1] * rank)
    places = zip(seen, strides, dilations, kernel, strict=True)
    spans = [(n - 1) * stride + dilation * (k - 1) + 1 for n, stride, dilation, k in places]
    pads = _pads(s, [span - length for span, length in zip(spans, image, strict=True)])
    left_out = [
        length + before + after - span
        for length, before, after, span in zip(image, pads[:rank], pads[rank:], spans, strict=True)
    ]
    yield (
        s.x,
        s.like(
            s.x,
            "ConvTranspose",
            s.gradient,
            s.node.input[1],
            strides=strides,
            dilations=dilations,
            group=s.attribute("group", 1),
            pads=pads,
            output_padding=left_out,
        ),
    )


def _pads(s: Step, wanted: list[int]) -> list[int]:
    """Return what a convolution adds on each side; `wanted` is what SAME adds on both."""
    rank, how = len(wanted), s.attribute("auto_pad", b"NOTSET")
    if how == b"NOTSET":
        pads: list[int] = s.attribute("pads", [0] * 2 * rank)
        return pads
    if how == b"VALID":
        return [0] * 2 * rank
    total = [max(length, 0) for length in wanted]
    small, large = [n // 2 for n in total], [n - n // 2 for n in total]
    return [*small, *large] if how == b"SAME_UPPER" else [*large, *small]


def _known(s: Step, shape: Shape) -> list[int]:
    lengths = [length for length in shape if length is not None]
    if len(lengths) < len(shape):
        raise UnsupportedError(f"the size of what {s.node.op_type} reads is not known")
    return lengths


def _max_pool(s: Step) -> Pairs:
    """The gradient goes to where the maxima were."""
    options: dict[str, Any] = {each.name: s.attribute(each.name, None) for each in s.node.attribute}
    shape = s.shape(s.y)
    _, places = s.emit.several("MaxPool", [s.x], [shape, shape], **options)
    s.emit.types[places] = onnx.TensorProto.INT64
    yield s.x, picked(s, s.x, places, s.gradient)


def _sum(s: Step) -> Pairs:
    yield s.x, _spread(s)


def _average(s: Step) -> Pairs:
    """The mean over some axes: the sum, over how many numbers there are in it."""
    yield s.x, s.like(s.x, "Div", _spread(s), _ratio(s))


def _ratio(s: Step) -> str:
    """Return how many numbers of the input each number of the output comes from."""
    many, few = (
        s.emit.add("Size", name, shape=(), dtype=onnx.TensorProto.INT64) for name in (s.x, s.y)
    )
    count = s.emit.add("Div", many, few, shape=(), dtype=onnx.TensorProto.INT64)
    return s.emit.add("Cast", count, shape=(), to=onnx.TensorProto.FLOAT)


def _spread(s: Step) -> str:
    """Repeat the gradient along the axes that were reduced."""
    shape = s.shape(s.x)
    kept = tuple(1 if axis in _axes(s) else length for axis, length in enumerate(shape))
    gradient = s.gradient
    if not s.attribute("keepdims", 1) and _axes(s):
        axes = s.emit.integers(*sorted(_axes(s)))
        gradient = s.emit.add("Unsqueeze", gradient, axes, shape=kept)
    size = s.emit.add("Shape", s.x, shape=(len(shape),), dtype=onnx.TensorProto.INT64)
    return s.like(s.x, "Expand", gradient, size)


def _axes(s: Step) -> set[int]:
    rank = len(s.shape(s.x))
    if s.node.op_type.startswith("Global"):
        return set(range(2, rank))
    axes = s.attribute("axes", None)
    if axes is None and len(s.node.input) > 1 and s.node.input[1]:
        axes = s.emit.value(s.node.input[1], "an axis").tolist()
    if not axes:
        return set() if s.attribute("noop_with_empty_axes", 0) else set(range(rank))
    return {axis % rank for axis in axes}


def _softmax(s: Step) -> Pairs:
    axis = s.attribute("axis", -1)
    weighed = s.elementwise("Mul", s.gradient, s.y)
    shape = list(s.shape(s.y))
    shape[axis] = 1
    total = s.emit.add("ReduceSum", weighed, s.emit.integers(axis), shape=tuple(shape), keepdims=1)
    yield s.x, s.elementwise("Sub", weighed, s.elementwise("Mul", s.y, total))


def _batch_normalization(s: Step) -> Pairs:
    scale, _, _, variance = (s.emit.value(name, "a statistic") for name in s.node.input[1:5])
    slope = scale / np.sqrt(variance + np.float32(s.attribute("epsilon", 1e-5)))
    rest = (1,) * (len(s.shape(s.x)) - 2)
    yield s.x, s.elementwise("Mul", s.gradient, s.emit.constant(slope.reshape(-1, *rest)))


def _layer_normalization(s: Step) -> Pairs:
    """Of what is normalised over its last axes (Ba, Kiros and Hinton, 2016)."""
    if len(s.node.input) > 1 and s.active(1):
        raise UnsupportedError("a normalisation by computed numbers has no derivative here")
    rank = len(s.shape(s.x))
    first = s.attribute("axis", -1) % rank
    axes, shape = s.emit.integers(*range(first, rank)), list(s.shape(s.x))
    shape[first:] = [1] * (rank - first)

    def mean(tensor: str) -> str:
        return s.emit.add("ReduceMean", tensor, axes, shape=tuple(shape), keepdims=1)

    centred = s.elementwise("Sub", s.x, mean(s.x))
    variance = mean(s.elementwise("Mul", centred, centred))
    epsilon = s.emit.constant(s.attribute("epsilon", 1e-5))
    deviation = s.like(variance, "Sqrt", s.like(variance, "Add", variance, epsilon))
    normal = s.elementwise("Div", centred, deviation)
    scaled = s.elementwise("Mul", s.gradient, s.node.input[1])
    along = s.elementwise("Mul", normal, mean(s.elementwise("Mul", scaled, normal)))
    rest = s.elementwise("Sub", s.elementwise("Sub", scaled, mean(scaled)), along)
    yield s.x, s.elementwise("Div", rest, deviation)


RULES: Final[dict[str, Rule]] = {
    "BatchNormalization": _batch_normalization,
    "Conv": _conv,
    "Gemm": _gemm,
    "GlobalAveragePool": _average,
    "LayerNormalization": _layer_normalization,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "ReduceMean": _average,
    "ReduceSum": _sum,
    "Softmax": _softmax,
}
