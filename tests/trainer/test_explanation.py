"""Permutation importance finds what a classifier looks at."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from servery_trainer.classification import Classification
from servery_trainer.explanation import permutation_importance
from servery_trainer.parity import Graph

HEAD = Classification(("no", "yes"))


@pytest.fixture
def graph() -> Graph:
    """Says `yes` if 2a + b > 0, whatever c is."""
    constants = [
        numpy_helper.from_array(np.array([[0, 2], [0, 1], [0, 0]], np.float32), "weights"),
        numpy_helper.from_array(np.array(["no", "yes"], np.object_), "labels"),
    ]
    nodes = [
        helper.make_node("Concat", ["a", "b", "c"], ["table"], axis=1),
        helper.make_node("MatMul", ["table", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["index"], axis=1, keepdims=1),
        helper.make_node("Gather", ["labels", "index"], ["label"], axis=0),
    ]
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        nodes,
        "g",
        [value(name, onnx.TensorProto.FLOAT, ["batch", 1]) for name in "abc"],
        [
            value("label", onnx.TensorProto.STRING, ["batch", 1]),
            value("probabilities", onnx.TensorProto.FLOAT, ["batch", 2]),
        ],
        constants,
    )
    opset = helper.make_opsetid("", 18)
    return Graph(helper.make_model(body, opset_imports=[opset], ir_version=8), 1)


def test_finds_what_matters_and_how_much(graph: Graph) -> None:
    rng = np.random.default_rng(4)
    rows = {name: rng.normal(size=(900, 1)).astype(np.float32) for name in "cba"}
    codes = np.int64(1) * (2 * rows["a"] + rows["b"] > 0)[:, 0]
    found = permutation_importance(graph, HEAD, rows, codes)
    assert [importance.input for importance in found] == ["a", "b", "c"]
    a, b, c = found
    # of two normal variables with weights 2 and 1: the angle between old and new, over pi
    assert a.score_drop == pytest.approx(np.arccos(1 / 5) / np.pi, abs=0.04)
    assert b.score_drop == pytest.approx(np.arccos(4 / 5) / np.pi, abs=0.04)
    assert (c.score_drop, c.deviation) == (0, 0)
    assert 0 < a.deviation < 0.05
    assert found == permutation_importance(graph, HEAD, rows, codes)


def test_one_input_has_nothing_to_be_compared_with(graph: Graph) -> None:
    assert (
        permutation_importance(
            graph, HEAD, {"a": np.zeros((3, 1), np.float32)}, np.zeros(3, np.int64)
        )
        == ()
    )
