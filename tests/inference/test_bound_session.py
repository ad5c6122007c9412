"""Sessions with fixed places for their tensors give what others give. On a CPU, and on a GPU."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from servery_inference.bound_session import MAX_SIZES, BoundSession, ShapesOpenError
from servery_inference.options import ModelOptions
from servery_inference.sessions import open_engine
from tests.inference import graphs

DEVICES = ["cpu", "cuda"]


def opened(graph: bytes, device: str = "cpu", **options: str) -> Any:
    """A plain session."""
    name = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    if name not in ort.get_available_providers():
        pytest.skip(f"the installed ONNX Runtime was built without {name}")
    providers = [(name, options), ("CPUExecutionProvider", {})]
    session = ort.InferenceSession(graph, providers=providers[: 1 if device == "cpu" else 2])
    if name not in session.get_providers():
        pytest.skip(f"{name} does not work here")
    return session


def rows(count: int, seed: int = 0) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 784)).astype("<f4")}


@pytest.mark.parametrize("sizes", [(), (2, 8)], ids=["as they are", "filled up"])
def test_answers_are_those_of_the_session(sizes: tuple[int, ...]) -> None:
    session = opened(graphs.dense())
    bound = BoundSession(session, "cpu", 0, sizes)
    for number, count in enumerate((1, 3, 8, 2, 0, 9, 1)):
        feed = rows(count, number)
        expected = session.run(None, feed)[0]
        got = bound.run(["y"], feed, ort.RunOptions())[0]
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", [(), (4,)], ids=["as they are", "filled up"])
def test_an_answer_stays_when_the_next_comes(sizes: tuple[int, ...]) -> None:
    bound = BoundSession(opened(graphs.plus(1)), "cpu", 0, sizes)
    first = bound.run(["y"], {"x": np.zeros((4, 2), np.float32)})[0]
    bound.run(["y"], {"x": np.ones((4, 2), np.float32)})
    assert (first == 1).all()


@pytest.mark.parametrize("sizes", [(), (4,)], ids=["as they are", "filled up"])
def test_runs_at_the_same_time_do_not_mix(sizes: tuple[int, ...]) -> None:
    bound = BoundSession(opened(graphs.plus(1)), "cpu", 0, sizes)

    def run(number: int) -> bool:
        x = np.full((number % 5, 2), number, np.float32)
        return bool((bound.run(["y"], {"x": x})[0] == number + 1).all())

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(run, range(400)))


def test_outputs_come_by_name_and_in_the_order_asked_for() -> None:
    bound = BoundSession(opened(graphs.add_and_subtract(2)), "cpu", 0)
    a, b = np.array([[5, 5]], np.int32), np.array([[3, 3]], np.int32)
    difference, total = bound.run(["difference", "sum"], {"a": a, "b": b})
    assert (difference[0, 0], total[0, 0]) == (2, 8)


def test_places_are_few() -> None:
    bound = BoundSession(opened(graphs.plus(1)), "cpu", 0)
    for count in range(2 * MAX_SIZES):
        bound.run(["y"], {"x": np.zeros((count, 2), np.float32)})
    assert len(bound._places) == MAX_SIZES


def test_a_graph_without_rows_has_one_place() -> None:
    bound = BoundSession(opened(graphs.identity("FP32", (2, 3))), "cpu", 0)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert (bound.run(None, {"x": x})[0] == x).all()


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(graphs.identity("BYTES"), id="texts"),
        pytest.param(graphs.identity("BF16"), id="what NumPy does not know"),
        pytest.param(graphs.identity("FP32", ("n", "w")), id="a free axis"),
    ],
)
def test_a_graph_of_unknown_sizes_is_refused(graph: bytes) -> None:
    with pytest.raises(ShapesOpenError):
        BoundSession(opened(graph), "cpu", 0)


def test_a_graph_that_gives_other_shapes_than_it_declares_runs_as_without_places() -> None:
    """`y` are the rows of `x` that are not 0, though it is declared to be as many as come."""
    nodes = [
        helper.make_node("Cast", ["x"], ["flags"], to=TensorProto.BOOL),
        helper.make_node("Compress", ["x", "flags"], ["y"], axis=0),
    ]
    value = [graphs.value(name, "FP32", ["n"]) for name in ("x", "y")]
    bound = BoundSession(opened(graphs.model(nodes, value[:1], value[1:])), "cpu", 0)
    for x in ([1, 2], [1, 0, 3], [0, 0, 0]):
        got = bound.run(["y"], {"x": np.array(x, np.float32)})[0]
        assert got.tolist() == [number for number in x if number]


@pytest.mark.parametrize("sizes", [(), (4,)], ids=["as they are", "filled up"])
def test_an_input_that_may_be_left_out_counts_when_it_is_there(sizes: tuple[int, ...]) -> None:
    model = onnx.ModelProto.FromString(graphs.plus(1))
    model.graph.input.append(graphs.value("w", "FP32", [2]))
    bound = BoundSession(opened(model.SerializeToString()), "cpu", 0, sizes)
    x, w = np.zeros((1, 2), np.float32), np.full(2, 5, np.float32)
    for feed, expected in (({"x": x}, 1), ({"x": x, "w": w}, 5), ({"x": x}, 1)):
        assert (bound.run(["y"], feed)[0] == expected).all()


def test_values_that_a_graph_refuses_are_refused() -> None:
    bound = BoundSession(opened(graphs.pick()), "cpu", 0)
    for row, expected in ((9, None), (2, 2.0), (9, None), (1, 1.0)):
        x = np.array([row])
        if expected is None:
            with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument):
                bound.run(["y"], {"x": x})
        else:
            assert bound.run(["y"], {"x": x})[0].tolist() == [expected]


def test_a_graph_of_unknown_sizes_runs_as_without_places(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.identity("BYTES"))
    engine = open_engine(tmp_path / "m" / "1" / "model.onnx", ModelOptions(is_bound=True))
    x = np.array([["a", "b"]], object)
    assert engine.run({"x": x}, ["y"])[0].tolist() == [["a", "b"]]


@pytest.mark.parametrize("sizes", [(), (1, 4)], ids=["as they are", "recorded"])
def test_a_gpu_gives_what_a_cpu_gives(sizes: tuple[int, ...]) -> None:
    options = {"enable_cuda_graph": "1"} if sizes else {}
    bound = BoundSession(opened(graphs.dense(), "cuda", **options), "cuda", 0, sizes)
    reference = opened(graphs.dense())
    for number, count in enumerate((1, 3, 4, 4, 1, 7, 3)):
        feed = rows(count, number)
        got = bound.run(["y"], feed)[0]
        np.testing.assert_allclose(got, reference.run(None, feed)[0], rtol=1e-2, atol=1e-2)
