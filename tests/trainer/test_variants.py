"""Graphs beside the converted one: built on a real network, measured, chosen by the budget."""

import functools
import math
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer import parity, profiling, quantization, variants
from servery_trainer.classification import Classification
from servery_trainer.hyperparameters import Optimization
from servery_trainer.parity import Graph
from servery_trainer.profiling import Latency
from servery_trainer.variants import Proof, Variant

HEAD = Classification(tuple(map(str, range(10))))
LATENCY, SIZE, ACCURACY = pb.OBJECTIVE_LATENCY, pb.OBJECTIVE_SIZE, pb.OBJECTIVE_ACCURACY


@functools.cache
def digits_graph() -> tuple[onnx.ModelProto, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Train a real network on real digits; return it as the graphs of jobs are, and its data."""
    data = load_digits()
    pixels = (data.data / 16).astype(np.float32)
    network = MLPClassifier((256, 128), max_iter=30, tol=0.1, n_iter_no_change=3, random_state=3)
    network.fit(pixels[:1200], data.target[:1200])
    nodes, constants, last = [], [], "pixels"
    for layer, (kernel, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        for name, values in ((f"k{layer}", kernel), (f"b{layer}", bias)):
            constants.append(numpy_helper.from_array(values.astype(np.float32), name))
        nodes += [
            helper.make_node("MatMul", [last, f"k{layer}"], [f"m{layer}"]),
            helper.make_node("Add", [f"m{layer}", f"b{layer}"], [f"s{layer}"]),
            helper.make_node("Relu", [f"s{layer}"], [f"r{layer}"]),
        ]
        last = f"r{layer}"
    labels = np.array([str(label) for label in range(10)], np.object_)
    constants.append(numpy_helper.from_array(labels, "labels"))
    nodes[-1] = helper.make_node("Softmax", ["s2"], ["probabilities"], axis=1)
    nodes += [
        helper.make_node("ArgMax", ["probabilities"], ["index"], axis=1, keepdims=1),
        helper.make_node("Gather", ["labels", "index"], ["label"], axis=0),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("pixels", onnx.TensorProto.FLOAT, ["batch", 64])],
        [
            value("label", onnx.TensorProto.STRING, ["batch", 1]),
            value("probabilities", onnx.TensorProto.FLOAT, ["batch", 10]),
        ],
        constants,
    )
    opset = helper.make_opsetid("", 18)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8), pixels, data.target


@pytest.fixture(scope="module")
def built() -> tuple[Variant, ...]:
    """All variants of a real network, measured, the smallest one chosen."""
    model, pixels, codes = digits_graph()
    expected = Graph(model, 1).predict({"pixels": pixels[1200:1216]})
    proof = Proof(
        HEAD, {"pixels": pixels[1200:1216]}, expected, {"pixels": pixels[1200:]}, codes[1200:], 1e-4
    )
    wanted = Optimization(objective=SIZE, max_accuracy_drop=0.05)
    measured, _ = variants.optimize(model, {"pixels": pixels[:1200]}, proof, wanted, 1)
    return measured


def test_builds_and_measures_all_of_them(built: tuple[Variant, ...]) -> None:
    assert [v.name for v in built] == ["float32", "optimized", "int8_dynamic", "int8_static"]
    float32, optimized, dynamic, static = built
    assert float32.error == 0
    assert optimized.error <= 1e-6
    for variant in (dynamic, static):
        assert 0 < variant.error < variants.INT8_TOLERANCE
        assert variant.size_bytes < float32.size_bytes / 2
        lower, upper = variant.score_drop_interval
        assert lower <= variant.score_drop <= upper
        assert variant.score == pytest.approx(float32.score - variant.score_drop)
    for variant in built:
        assert [latency.batch_size for latency in variant.latencies] == [1, 8, 32, 128]
        assert all(latency.median_us > 0 for latency in variant.latencies)
    (chosen,) = (variant for variant in built if variant.chosen)
    assert chosen.size_bytes == min(v.size_bytes for v in built if not v.refusal)


def test_labels_and_preprocessing_stay_exact(built: tuple[Variant, ...]) -> None:
    for variant in built:
        kinds = {node.op_type for node in variant.model.graph.node}
        assert {"ArgMax", "Gather", "Softmax"} <= kinds
        names = [output.name for output in variant.model.graph.output]
        assert names == ["label", "probabilities"]


def test_without_a_wish_for_speed_or_size_nothing_else_is_built() -> None:
    model, pixels, codes = digits_graph()
    rows = {"pixels": pixels[:64]}
    proof = Proof(HEAD, rows, Graph(model, 1).predict(rows), rows, codes[:64], 1e-4)
    (only,), _ = variants.optimize(model, rows, proof, Optimization(), 1)
    assert only.chosen
    assert only.model is model


def variant(name: str, time: float, *, size: int = 100, drop: float = 0, error: float = 0) -> Any:
    """A variant as it might have been measured; no graph is needed to choose."""
    latencies = tuple(
        Latency(
            batch_size=batch,
            runs=20,
            min_us=time * batch,
            median_us=time * batch,
            p95_us=9 * time * batch,
        )
        for batch in profiling.BATCH_SIZES
    )
    return Variant(
        name=name,
        model=onnx.ModelProto(),
        graph=None,  # type: ignore[arg-type]
        size_bytes=size,
        tolerance=0.1,
        error=error,
        score=0.9 - drop,
        score_drop=drop,
        score_drop_interval=(drop, drop),
        latencies=latencies,
    )


FLOAT32 = variant("float32", 100)


@pytest.mark.parametrize(
    ("wanted", "others", "chosen"),
    [
        pytest.param({}, [variant("int8_static", 10, size=1)], "float32", id="accuracy"),
        pytest.param(
            {"objective": LATENCY},
            [variant("int8_dynamic", 70), variant("int8_static", 50)],
            "int8_static",
            id="the fastest",
        ),
        pytest.param(
            {"objective": LATENCY}, [variant("optimized", 95)], "float32", id="noise is no gain"
        ),
        pytest.param(
            {"objective": SIZE},
            [variant("int8_dynamic", 99, size=30), variant("int8_static", 101, size=20)],
            "int8_dynamic",
            id="the smallest that is not slower",
        ),
        pytest.param(
            {"objective": LATENCY},
            [variant("int8_static", 50, drop=0.011), variant("int8_dynamic", 60, drop=0.009)],
            "int8_dynamic",
            id="within the drop",
        ),
        pytest.param(
            {"objective": LATENCY},
            [variant("int8_static", 50, error=0.11), variant("int8_dynamic", 60, error=math.inf)],
            "float32",
            id="golden rows must hold",
        ),
        pytest.param(
            {"max_latency_us": 80.0},
            [variant("int8_dynamic", 79), variant("int8_static", 60)],
            "int8_static",
            id="float32 is too slow",
        ),
    ],
)
def test_keeps_the_budget(wanted: dict[str, Any], others: list[Variant], chosen: str) -> None:
    judged = variants.choose([FLOAT32, *others], Optimization(**wanted))
    assert [v.name for v in judged if v.chosen] == [chosen]


def test_a_budget_of_time_that_nothing_keeps_names_what_would() -> None:
    slow = [FLOAT32, variant("int8_dynamic", 40), variant("int8_static", 20, drop=0.5)]
    with pytest.raises(FieldInvalidError) as refused:
        variants.choose(slow, Optimization(max_latency_us=30))
    assert refused.value.metadata["field"] == "training_job.spec.optimization.max_latency_us"
    assert "at least 40" in str(refused.value)


@pytest.mark.skipif(
    parity.CUDA in ort.get_available_providers(), reason="there may be a device to measure on"
)
def test_what_needs_a_device_that_is_not_there_is_listed_with_the_reason() -> None:
    model, pixels, codes = digits_graph()
    rows = {"pixels": pixels[1200:1216]}
    proof = Proof(HEAD, rows, Graph(model, 1).predict(rows), rows, codes[1200:1216], 1e-4)
    wanted = Optimization(objective=LATENCY, max_accuracy_drop=1)
    measured, unmeasured = variants.optimize(model, rows, proof, wanted, 1)
    assert "float16" not in [variant.name for variant in measured]
    assert [one.name for one in unmeasured] == ["float16"]
    assert parity.CUDA in unmeasured[0].refusal


def test_half_floats_halve_the_networks_and_nothing_else() -> None:
    original, pixels, _ = digits_graph()
    model = onnx.ModelProto()
    model.CopyFrom(original)
    graph = model.graph
    scale = numpy_helper.from_array(
        np.array([1e6], np.float32), "scale"
    )  # no 16-bit float is so large
    large = helper.make_node("Div", ["raw", "scale"], ["_/features"])
    for node in graph.node:
        node.input[:] = ["_/features" if name == "pixels" else name for name in node.input]
        for names in (node.input, node.output):
            names[:] = ["_/answers" if name == "probabilities" else name for name in names]
    last = helper.make_node("Identity", ["_/answers"], ["probabilities"])
    nodes = [large, *graph.node, last]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.append(scale)
    graph.input[0].name = "raw"
    narrow = quantization.float16(model)
    rows = {"raw": pixels[1200:] * np.float32(1e6)}
    one, other = (Graph(each, 1).predict(rows) for each in (model, narrow))
    assert (one["label"] == other["label"]).mean() > 0.99
    np.testing.assert_allclose(one["probabilities"], other["probabilities"], atol=0.01)
    assert narrow.ByteSize() < 0.55 * model.ByteSize()
    assert [value.type for value in narrow.graph.output] == [value.type for value in graph.output]
