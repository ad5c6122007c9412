"""The derivative of each operator is the one that differences of its outputs show."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from servery_trainer.gradients import recurrent, shapes
from servery_trainer.gradients.emitter import Emitter, UnsupportedError
from servery_trainer.gradients.reverse import differentiate

Array = NDArray[Any]
RNG = np.random.default_rng(8)
STEP = 1e-2


def normal(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def graph(nodes: str, x: Array, constants: dict[str, Array]) -> onnx.ModelProto:
    """Parse the nodes of a graph from `x` to `y`."""
    shape = ",".join(map(str, x.shape))
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 18]> g (float[{shape}] x) => (float y) {{ {nodes} }}'
    )
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def run(model: onnx.ModelProto, x: Array) -> Array:
    outputs: list[Array] = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    return outputs[-1]


def derived(model: onnx.ModelProto, seed: Array) -> onnx.ModelProto:
    """Return the graph of the gradient of `seed` times `y` by `x`."""
    emit = Emitter("gradient/")
    (given,) = model.graph.input
    emit.shapes["x"] = tuple(each.dim_value for each in given.type.tensor_type.shape.dim)
    nodes = shapes.constants_of(model.graph, emit)
    shapes.infer(nodes, ["x"], emit, 18)
    nodes = recurrent.lowered(nodes, emit)
    found = differentiate(nodes, {"y": emit.constant(seed)}, ["x"], emit)["x"]
    result = helper.make_graph(
        [*nodes, *emit.nodes],
        "gradient",
        [given],
        [helper.make_tensor_value_info(found, onnx.TensorProto.FLOAT, None)],
        list(emit.constants.values()),
    )
    opset = helper.make_opsetid("", 18)
    return helper.make_model(result, opset_imports=[opset], ir_version=9)


def differences(model: onnx.ModelProto, x: Array, seed: Array) -> Array:
    """Return the same by moving each number of `x` a little."""
    session = ort.InferenceSession(model.SerializeToString())
    slopes = np.empty(x.size)
    for place in range(x.size):
        ends = []
        for move in (-STEP, STEP):
            moved = x.copy()
            moved.flat[place] += move
            ends.append(session.run(["y"], {"x": moved})[0].astype(np.float64))
        slopes[place] = ((ends[1] - ends[0]) * seed).sum() / (2 * STEP)
    return slopes.reshape(x.shape)


def check(nodes: str, x: Array, **constants: Array) -> None:
    model = graph(nodes, x, constants)
    seed = normal(*run(model, x).shape)
    expected = differences(model, x, seed)
    got = run(derived(model, seed), x)
    assert got.shape == x.shape
    np.testing.assert_allclose(got, expected, rtol=5e-3, atol=5e-3)
    assert np.any(expected)


SPREAD = np.linspace(-2.3, 2.1, 12).reshape(3, 4).astype(np.float32)
"""Far from where a slope jumps."""


@pytest.mark.parametrize(
    "operator",
    ["Abs", "Erf", "Exp", "Identity", "LeakyRelu", "Neg", "Relu", "Sigmoid", "Softplus", "Tanh"],
)
def test_functions_of_one_number(operator: str) -> None:
    check(f"y = {operator}(x)", SPREAD)


@pytest.mark.parametrize("operator", ["Log", "Sqrt", "Reciprocal"])
def test_functions_of_a_positive_number(operator: str) -> None:
    check(f"y = {operator}(x)", np.abs(SPREAD) + 1)


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum"])
@pytest.mark.parametrize("nodes", ["{}(x, other)", "{}(other, x)"])
@pytest.mark.parametrize("other", [(3, 4), (2, 3, 4), (1, 4), ()])
def test_operators_that_broadcast(operator: str, nodes: str, other: tuple[int, ...]) -> None:
    x = 0.7 + 0.3 * RNG.permutation(12).reshape(3, 4).astype(np.float32)
    values = RNG.choice([1.75, 2.05, 2.35], other).astype(np.float32)  # never near one of x
    check(f"y = {nodes.format(operator)}", x, other=values)
    narrow = np.array([[0.7], [2.2], [3.7]], np.float32)
    check(f"y = {nodes.format(operator)}", narrow, other=values)


def test_a_tensor_that_is_used_often() -> None:
    check("a = Mul(x, x) b = Tanh(a) c = Mul(a, b) y = Add(c, x)", SPREAD)


@pytest.mark.parametrize("exponent", [2, 3, -1])
def test_powers(exponent: float) -> None:
    check("y = Pow(x, n)", np.abs(SPREAD) + 1, n=np.array(exponent, np.float32))


def test_choices() -> None:
    chosen = RNG.random((3, 4)) < 0.5
    check("y = Where(c, x, other)", SPREAD, c=chosen, other=normal(3, 4))
    check("y = Where(c, other, x)", SPREAD[:1], c=chosen, other=normal(3, 4))
    low, high = np.array(-1, np.float32), np.array(1.5, np.float32)
    check("y = Clip(x, low, high)", SPREAD, low=low, high=high)


@pytest.mark.parametrize(
    ("nodes", "x", "other"),
    [
        ("MatMul(x, other)", (3, 4), (4, 5)),
        ("MatMul(other, x)", (3, 4), (5, 3)),
        ("MatMul(x, other)", (2, 3, 4), (4, 5)),
        ("MatMul(other, x)", (3, 4), (2, 5, 3)),
        ("MatMul(x, other)", (1, 3, 4), (2, 4, 5)),
        ("Gemm(x, other)", (3, 4), (4, 5)),
        ("Gemm <transA = 1, transB = 1, alpha = 2.0> (x, other)", (4, 3), (5, 4)),
        ("Gemm <transB = 1> (other, x)", (3, 4), (5, 4)),
        ("Gemm <transA = 1, alpha = 0.5> (other, x)", (4, 3), (4, 5)),
    ],
)
def test_products(nodes: str, x: Sequence[int], other: Sequence[int]) -> None:
    check(f"y = {nodes}", normal(*x), other=normal(*other))


@pytest.mark.parametrize(
    ("attributes", "size", "kernel"),
    [
        ("pads = [1, 1, 1, 1]", (2, 3, 5, 6), (4, 3, 3, 3)),
        ("strides = [2, 3]", (2, 3, 7, 8), (4, 3, 3, 2)),
        ('auto_pad = "SAME_UPPER", strides = [2, 2]', (1, 2, 6, 7), (3, 2, 3, 3)),
        ('auto_pad = "SAME_LOWER", strides = [2, 2]', (1, 2, 6, 7), (3, 2, 4, 3)),
        ("dilations = [2, 1], pads = [0, 1, 2, 0]", (1, 2, 7, 6), (3, 2, 3, 3)),
        ("group = 2", (2, 4, 5, 5), (6, 2, 3, 3)),
        ("strides = [3], pads = [1, 0]", (2, 3, 9), (4, 3, 4)),
    ],
)
def test_convolutions(attributes: str, size: Sequence[int], kernel: Sequence[int]) -> None:
    check(f"y = Conv <{attributes}> (x, k)", normal(*size), k=normal(*kernel))


@pytest.mark.parametrize(
    "attributes",
    [
        "kernel_shape = [2, 2], strides = [2, 2]",
        "kernel_shape = [3, 3], strides = [1, 1], pads = [1, 1, 1, 1]",
    ],
)
def test_pooling(attributes: str) -> None:
    apart = RNG.permutation(2 * 3 * 6 * 5).reshape(2, 3, 6, 5).astype(np.float32) / 4
    check(f"y = MaxPool <{attributes}> (x)", apart)
    check("y = GlobalAveragePool(x)", apart)


@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceSum"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_sums(operator: str, keepdims: int) -> None:
    axes = np.array([-1, 0])
    check(f"y = {operator} <keepdims = {keepdims}> (x, axes)", normal(2, 3, 4), axes=axes)
    check(f"y = {operator} <keepdims = {keepdims}> (x)", normal(2, 3))


def test_normalisations() -> None:
    check("y = Softmax <axis = 1> (x)", normal(2, 3, 4))
    check("y = Softmax(x)", normal(2, 3))
    for axis, shape in ((-1, (4,)), (1, (3, 4))):
        factors = {"scale": normal(*shape), "bias": normal(*shape)}
        nodes = f"y = LayerNormalization <axis = {axis}, epsilon = 0.1> (x, scale, bias)"
        check(nodes, normal(2, 3, 4), **factors)
    scale, bias, mean, variance = normal(3), normal(3), normal(3), np.abs(normal(3)) + 0.5
    statistics = {"s": scale, "b": bias, "m": mean, "v": variance}
    check("y = BatchNormalization(x, s, b, m, v)", normal(2, 3, 4), **statistics)


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Concat <axis = 1> (x, other, x)",
        "size = Constant <value = int64[4] {5, 2, 3, 4}> () y = Expand(x, size)",
        "y = Flatten(x)",
        "at = Constant <value = int64[2, 2] {2, 0, 2, -1}> () y = Gather <axis = 1> (x, at)",
        "size = Constant <value = int64[2] {4, -1}> () y = Reshape(x, size)",
        "a, b, c = Split <axis = 2, num_outputs = 3> (x) y = Mul(a, c)",
        "y = Transpose <perm = [2, 0, 1]> (x)",
        "axes = Constant <value = int64[2] {0, -1}> () u = Unsqueeze(x, axes) y = Squeeze(u, axes)",
        (
            "lengths = Constant <value = int64[2] {2, 3}> ()"
            " y = ReverseSequence <time_axis = 1, batch_axis = 0> (x, lengths)"
        ),
        (
            "from = Constant <value = int64[2] {-1, 2}> ()"
            " to = Constant <value = int64[2] {-9, 3}> ()"
            " axes = Constant <value = int64[2] {1, 2}> ()"
            " by = Constant <value = int64[2] {-2, 1}> ()"
            " y = Slice(x, from, to, axes, by)"
        ),
    ],
)
def test_rearrangements(nodes: str) -> None:
    shape = (2, 3, 3) if "Split" in nodes else (2, 3, 4)
    check(nodes, normal(*shape), other=normal(2, 1, 4))


def test_elements_gathered_one_by_one() -> None:
    places = np.array([[0, 3, 3], [1, 1, 2]])
    check("y = GatherElements <axis = 1> (x, at)", normal(2, 4), at=places)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3)])
@pytest.mark.parametrize("output", ["y, last", "all, y"])
def test_recurrent_layers(direction: str, operator: str, gates: int, output: str) -> None:
    count, units = 1 + (direction == "bidirectional"), 3
    weights = {
        "w": normal(count, gates * units, 2),
        "r": normal(count, gates * units, units),
        "b": normal(count, 2 * gates * units),
        "h": normal(count, 2, units),
    }
    for reset in (0, 1) if operator == "GRU" else (None,):
        options = f'hidden_size = {units}, direction = "{direction}"'
        options += "" if reset is None else f", linear_before_reset = {reset}"
        check(f"{output} = {operator} <{options}> (x, w, r, b, , h)", normal(5, 2, 2), **weights)


def test_a_loop_is_as_its_operator_says() -> None:
    weights = {"w": normal(2, 12, 2), "r": normal(2, 12, 3), "b": normal(2, 24)}
    options = 'hidden_size = 3, direction = "bidirectional"'
    x = normal(5, 2, 2)
    model = graph(f"y = LSTM <{options}> (x, w, r, b)", x, weights)
    expected = run(model, x)
    emit = Emitter("loop/")
    emit.shapes["x"] = x.shape
    nodes = shapes.constants_of(model.graph, emit)
    shapes.infer(nodes, ["x"], emit, 18)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(recurrent.lowered(nodes, emit))
    model.graph.initializer.extend(emit.constants.values())
    np.testing.assert_allclose(run(model, x), expected, atol=1e-6)


LOOP = """
    turns = Constant <value = int64 {4}> ()
    yes = Constant <value = bool {1}> ()
    last, y = Loop (turns, yes, first) <body = b (int64 i, bool go, float[2] h) => (
        bool goes, float[2] later, float[2] out) {
        goes = Identity(go)
        now = Gather(x, i)
        whole = ReduceMean <keepdims = 0> (x)
        a = Mul(now, h)
        b = Add(a, whole)
        later = Tanh(b)
        out = Mul(later, now)
    }>
"""


def test_loops_that_read_one_step_and_all_of_what_is_outside() -> None:
    check(LOOP, normal(5, 2), first=normal(2))


def test_what_has_no_rule_is_refused() -> None:
    model = graph("y = CumSum(x, axis)", SPREAD, {"axis": np.array(1)})
    with pytest.raises(UnsupportedError, match="CumSum"):
        derived(model, SPREAD)


def test_what_changes_nothing_has_a_gradient_of_zero() -> None:
    model = graph("f = Floor(x) y = Mul(f, other)", SPREAD, {"other": SPREAD})
    np.testing.assert_array_equal(run(derived(model, SPREAD), SPREAD), np.zeros_like(SPREAD))
