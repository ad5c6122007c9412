"""The gate, on graphs small enough to read; and how fast they are."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from servery_trainer.classification import Classification
from servery_trainer.parity import Graph, ParityFailedError, check_parity, relative_error
from servery_trainer.profiling import BATCH_SIZES, measure

LABELS = ("left", "right")
HEAD = Classification(LABELS)


def graph(scale: float = 1) -> Graph:
    """Answers `scale` times its input as probabilities, and the label of the larger one."""
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Mul", ["x", "scale"], ["probabilities"]),
                helper.make_node("ArgMax", ["probabilities"], ["index"], axis=1),
                helper.make_node("Gather", ["labels", "index"], ["label"]),
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
            [
                helper.make_tensor_value_info("label", TensorProto.STRING, ["batch", 1]),
                helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2]),
            ],
            [
                numpy_helper.from_array(np.array(scale, np.float32), "scale"),
                numpy_helper.from_array(np.array(LABELS, object), "labels"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    return Graph(model, threads=1)


@pytest.fixture
def rows() -> Any:
    return np.random.default_rng(0).dirichlet([1, 1], 100).astype(np.float32)


def test_a_faithful_graph_passes(rows: Any) -> None:
    parity = check_parity(graph(), {"x": rows}, HEAD.decode(rows), tolerance=1e-6)
    assert (parity.row_count, parity.max_relative_error, parity.label_agreement) == (100, 0, 1)


def test_a_graph_that_is_off_does_not(rows: Any) -> None:
    with pytest.raises(ParityFailedError) as failed:
        check_parity(graph(1.001), {"x": rows}, HEAD.decode(rows), tolerance=1e-4)
    assert failed.value.metadata["tolerance"] == "0.0001"
    assert float(failed.value.metadata["max_relative_error"]) == pytest.approx(1e-3, rel=0.05)


def test_neither_does_one_that_answers_nan(rows: Any) -> None:
    with pytest.raises(ParityFailedError):
        check_parity(graph(float("nan")), {"x": rows}, HEAD.decode(rows), tolerance=1e-4)


def test_labels_that_differ_within_the_tolerance_are_counted() -> None:
    expected = np.array([[0.5, 0.50001], [0.9, 0.1]], np.float32)
    got = np.array([[0.50001, 0.5], [0.9, 0.1]], np.float32)
    parity = check_parity(graph(), {"x": got}, HEAD.decode(expected), tolerance=1e-4)
    assert parity.label_agreement == 0.5


def test_errors_are_relative_above_one_only() -> None:
    got, expected = np.array([[102, 0.02]], np.float32), np.array([[100, 0.01]], np.float32)
    assert relative_error(got, expected) == pytest.approx(0.02)


def test_a_number_near_zero_among_large_ones_has_their_rounding() -> None:
    expected = np.array([[3e6], [-1e6], [0.5]], np.float32)
    assert relative_error(expected + np.float32(1), expected) == pytest.approx(3 / 4e6, rel=1e-3)


def test_predicts_more_rows_than_one_run_takes() -> None:
    rows = np.random.default_rng(0).dirichlet([1, 1], 2500).astype(np.float32)
    np.testing.assert_array_equal(graph().predict({"x": rows})["probabilities"], rows)


def test_latency_is_measured_at_every_batch_size(rows: Any) -> None:
    (latencies,) = measure([graph()], {"x": rows[:3]})
    assert tuple(latency.batch_size for latency in latencies) == BATCH_SIZES
    assert all(0 < latency.min_us <= latency.median_us <= latency.p95_us for latency in latencies)
