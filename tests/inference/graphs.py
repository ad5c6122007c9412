"""Small ONNX graphs, and bundles made of them."""

import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
    "FP8": TensorProto.FLOAT8E4M3FN,
}


def model(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], weights: Sequence[Any] = ()
) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def value(name: str, datatype: str, shape: Sequence[str | int]) -> Any:
    return helper.make_tensor_value_info(name, ONNX_TYPES[datatype], list(shape))


def identity(datatype: str, shape: Sequence[str | int] = ("batch", 2)) -> bytes:
    """`y` is `x`."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return model([node], [value("x", datatype, shape)], [value("y", datatype, shape)])


def add_and_subtract(width: int = 16) -> bytes:
    """Two inputs `a` and `b`; `sum` and `difference`, in this order."""
    inputs = [value(name, "INT32", ["batch", width]) for name in ("a", "b")]
    outputs = [value(name, "INT32", ["batch", width]) for name in ("sum", "difference")]
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Sub", ["a", "b"], ["difference"]),
    ]
    return model(nodes, inputs, outputs)


def plus(number: float) -> bytes:
    """`y` is `x` FP32 [batch, 2] plus `number`: versions of it are told apart by their answers."""
    weight = numpy_helper.from_array(np.full(2, number, np.float32), "w")
    node = helper.make_node("Add", ["x", "w"], ["y"])
    shape = ("batch", 2)
    return model([node], [value("x", "FP32", shape)], [value("y", "FP32", shape)], [weight])


def parts(factor: float = 10) -> bytes:
    """As `plus` takes, `x` FP32 [batch, 2]; `parts` is `x` times `factor`, `total` is their sum."""
    weight = numpy_helper.from_array(np.full(2, factor, np.float32), "w")
    axes = numpy_helper.from_array(np.array([1]), "axes")
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["parts"]),
        helper.make_node("ReduceSum", ["parts", "axes"], ["total"]),
    ]
    shape = ("batch", 2)
    outputs = [value("parts", "FP32", shape), value("total", "FP32", ("batch", 1))]
    return model(nodes, [value("x", "FP32", shape)], outputs, [weight, axes])


def dense(seed: int = 0, sizes: Sequence[int] = (784, 128, 10)) -> bytes:
    """Layers of `x` FP32 [batch, sizes[0]] to `y` FP32 [batch, sizes[-1]]."""
    random = np.random.default_rng(seed)
    nodes, weights, last = [], [], "x"
    for layer, shape in enumerate(itertools.pairwise(sizes)):
        matrix = random.normal(size=shape).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"]))
        last = f"r{layer}" if layer < len(sizes) - 2 else "y"
        nodes.append(helper.make_node("Relu" if last != "y" else "Identity", [f"m{layer}"], [last]))
    inputs, outputs = [value("x", "FP32", ["n", sizes[0]])], [value("y", "FP32", ["n", sizes[-1]])]
    return model(nodes, inputs, outputs, weights)


def pick() -> bytes:
    """`y` is the row of a table of 3 that `x` INT64 [batch] names; another row is refused."""
    table = numpy_helper.from_array(np.arange(3, dtype=np.float32), "table")
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    return model([node], [value("x", "INT64", ["batch"])], [value("y", "FP32", ["batch"])], [table])


def endless() -> bytes:
    """Loops as often as `x` INT64 [1] says; once in a warm-up of zeros, for ever if asked to."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_out"]),
            helper.make_node("Identity", ["v"], ["v_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_out", TensorProto.INT64, [1]),
        ],
    )
    nodes = [
        helper.make_node("Squeeze", ["x"], ["count"]),
        helper.make_node("Loop", ["count", "", "x"], ["y"], body=body),
    ]
    return model(nodes, [value("x", "INT64", [1])], [value("y", "INT64", [1])])


def patient() -> bytes:
    """`y` is `x` INT64 [batch], after as many turns of a loop as the largest of `x` says."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_out"]),
            helper.make_node("Identity", ["v"], ["v_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.INT64, ["batch"]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_out", TensorProto.INT64, ["batch"]),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["count"], keepdims=0),
        helper.make_node("Loop", ["count", "", "x"], ["y"], body=body),
    ]
    return model(nodes, [value("x", "INT64", ["batch"])], [value("y", "INT64", ["batch"])])


def first_row() -> bytes:
    """`y` is the first row of `x` FP32 [batch, 2]: one row, however many come."""
    zero = numpy_helper.from_array(np.array([0]), "zero")
    node = helper.make_node("Gather", ["x", "zero"], ["y"], axis=0)
    shape = ("batch", 2)
    return model([node], [value("x", "FP32", shape)], [value("y", "FP32", shape)], [zero])


def running_sum() -> bytes:
    """`y` is `x` INT32 [batch, 1] plus the state `sum_in`; `y` is `sum_out` too.

    `start`, `end`, `ready` FP32 [batch, 1] and `id` UINT64 [batch, 1] come out as they came in.
    """
    flags = ("start", "end", "ready")
    row = ("batch", 1)
    inputs = [value("x", "INT32", row), value("sum_in", "INT32", row), value("id", "UINT64", row)]
    outputs = [value("y", "INT32", row), value("sum_out", "INT32", row)]
    nodes = [
        helper.make_node("Add", ["x", "sum_in"], ["y"]),
        helper.make_node("Identity", ["y"], ["sum_out"]),
        helper.make_node("Identity", ["id"], ["id_out"]),
        *[helper.make_node("Identity", [flag], [f"{flag}_out"]) for flag in flags],
    ]
    inputs += [value(flag, "FP32", row) for flag in flags]
    outputs += [value("id_out", "UINT64", row)]
    outputs += [value(f"{flag}_out", "FP32", row) for flag in flags]
    return model(nodes, inputs, outputs)


def npz(
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    tolerance: float = 1e-5,
    explanations: Mapping[str, Array] = MappingProxyType({}),
) -> bytes:
    """The bytes of a `golden.npz`."""
    arrays: dict[str, Any] = {f"input:{name}": array for name, array in inputs.items()}
    arrays |= {f"output:{name}": array for name, array in outputs.items()}
    arrays |= {f"explain:{name}": array for name, array in explanations.items()}
    stream = io.BytesIO()
    np.savez(stream, tolerance=np.float64(tolerance), **arrays)
    return stream.getvalue()


def plus_bundle(number: float, golden: float | None = None) -> dict[str, bytes]:
    """A bundle of `plus(number)`; `golden` is what its golden rows say it adds."""
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    shape = [-1, 2]
    signature = {
        "task": "regression",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "meaning": "a number"}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": shape, "meaning": "a larger one"}],
    }
    answer = x + np.float32(number if golden is None else golden)
    return {
        "model.onnx": plus(number),
        "signature.json": json.dumps(signature).encode(),
        "golden.npz": npz({"x": x}, {"y": answer}),
    }


def explained_plus_bundle(number: float, factor: float = 10) -> dict[str, bytes]:
    """A bundle of `plus(number)` with `parts(factor)`, and golden rows of both."""
    bundle = plus_bundle(number)
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    shares = x * np.float32(factor)
    told = {"parts": shares, "total": shares.sum(axis=1, keepdims=True)}
    outputs = [
        {"name": name, "datatype": "FP32", "shape": [-1, array.shape[1]], "meaning": "a share"}
        for name, array in told.items()
    ]
    signature = {**json.loads(bundle["signature.json"]), "explanation": {"outputs": outputs}}
    return {
        **bundle,
        "signature.json": json.dumps(signature).encode(),
        "golden.npz": npz({"x": x}, {"y": x + np.float32(number)}, explanations=told),
        "explain.onnx": parts(factor),
    }


def external_plus_bundle(number: float) -> dict[str, bytes]:
    """A bundle of `plus(number)` that has the number in a file beside the graph."""
    made = onnx.ModelProto.FromString(plus(number))
    (weight,) = made.graph.initializer
    data = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    graph = bytes(made.SerializeToString())
    return {**plus_bundle(number), "model.onnx": graph, "weights.bin": data}


def store(root: Path, name: str, graph: bytes, version: int | str = 1, **files: bytes) -> None:
    """Lay a version out as a directory of models has it; `golden_npz` names golden.npz."""
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph)
    for file, data in files.items():
        (folder / file.replace("_", ".")).write_bytes(data)


def configure(root: Path, name: str, config: str) -> None:
    """Write the `config.pbtxt` of a model."""
    (root / name).mkdir(exist_ok=True)
    (root / name / "config.pbtxt").write_text(config)


def at_least_two_columns() -> bytes:
    """`y` is the column 1 of `x` FP32 [batch, width]."""
    one = numpy_helper.from_array(np.array([1]), "one")
    node = helper.make_node("Gather", ["x", "one"], ["y"], axis=1)
    shapes = ("batch", "width"), ("batch", 1)
    return model([node], [value("x", "FP32", shapes[0])], [value("y", "FP32", shapes[1])], [one])
