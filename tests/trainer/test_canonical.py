"""Graphs that differ in the numbers of the converter only become the same bytes."""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from servery_trainer.canonical import canonical


def graph(first: int, second: int, *, kept: str = "c", turned: bool = False) -> onnx.ModelProto:
    """Return (x + 1) * 2, with the names of its inner tensors numbered like this.

    `kept` is what the constant two was for where the converter found it first.
    """
    one, two, sum_ = f"g/c__{first}", f"g/{kept}__{second}", f"add__{first}:0"
    constants = [
        numpy_helper.from_array(np.array([value], np.float32), name)
        for name, value in ((one, 1), (two, 2))
    ]
    body = helper.make_graph(
        [
            helper.make_node("Add", ["x__1", one], [sum_], name=f"add__{first}"),
            helper.make_node("Mul", [sum_, two], ["y"], name=f"mul__{second}"),
        ],
        "g",
        [helper.make_tensor_value_info("x__1", onnx.TensorProto.FLOAT, ["batch"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch"])],
        constants[::-1] if turned else constants,
    )
    opset = helper.make_opsetid("", 18)
    return helper.make_model(body, opset_imports=[opset], ir_version=8)


def test_the_same_graph_becomes_the_same_bytes() -> None:
    one, two = canonical(graph(3, 7)), canonical(graph(9, 2, kept="axes_", turned=True))
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)


def test_the_graph_still_computes_the_same() -> None:
    model = canonical(graph(3, 1))
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString())
    (y,) = session.run(["y"], {"x__1": np.array([1, 2], np.float32)})
    assert y.tolist() == [4, 6]
