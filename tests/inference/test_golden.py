"""What counts as reproducing golden rows."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servery_inference.engine import LoadFailedError
from servery_inference.golden import Golden, relative_error
from servery_inference.options import ModelOptions
from servery_inference.sessions import open_engine
from tests.inference import graphs

NAN, INF = float("nan"), float("inf")


def f4(*rows: list[float]) -> graphs.Array:
    return np.array(rows, np.float32)


def check(tmp_path: Path, graph: bytes, golden: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(graph)
    (tmp_path / "golden.npz").write_bytes(golden)
    engine = open_engine(tmp_path / "model.onnx", ModelOptions())
    Golden.read(tmp_path / "golden.npz").check(engine)


@pytest.mark.parametrize(
    ("answer", "golden", "expected"),
    [
        (1.0, 1.0, 0.0),
        (0.5, 0.0, 0.5),  # Small numbers are compared absolutely,
        (110.0, 100.0, 0.1),  # large ones relatively.
        (NAN, NAN, 0.0),
        (NAN, 1.0, INF),
        (1.0, NAN, INF),
        (INF, INF, 0.0),
        (INF, -INF, INF),
        (INF, 1.0, INF),
    ],
)
def test_relative_error(answer: float, golden: float, expected: float) -> None:
    got = relative_error(np.array([answer]), np.array([golden]))
    np.testing.assert_allclose(got, [expected])


def test_a_number_near_zero_among_large_ones_has_their_rounding() -> None:
    golden = np.array([3e6, -1e6, 0.5, NAN, INF])
    np.testing.assert_allclose(
        relative_error(golden + 1, golden), [1 / 3e6, *[3 / 4e6] * 2, 0, 0], rtol=1e-3
    )


def test_texts_and_special_numbers_reproduce(tmp_path: Path) -> None:
    texts = np.array([["a", "é"], ["", "b"]])
    check(tmp_path, graphs.identity("BYTES"), graphs.npz({"x": texts}, {"y": texts}))
    floats = np.array([[NAN, INF], [-INF, 0]], "f4")
    check(tmp_path, graphs.identity("FP32"), graphs.npz({"x": floats}, {"y": floats}))


@pytest.mark.parametrize(
    ("datatype", "x", "y"),
    [
        pytest.param("FP32", f4([1, 2]), f4([1, 2.1]), id="a float"),
        pytest.param("FP32", f4([1, 2]), f4([1, NAN]), id="NaN"),
        pytest.param("INT64", np.array([[1, 2]]), np.array([[1, 3]]), id="an integer"),
        pytest.param("BYTES", np.array([["a", "b"]]), np.array([["a", "c"]]), id="a text"),
        pytest.param("FP32", f4([1, 2]), f4([1, 2], [1, 2]), id="rows"),
        pytest.param("FP32", f4([1, 2]), np.array([[1.0, 2]]), id="dtype of the output"),
        pytest.param("FP32", np.array([[1, 2]]), f4([1, 2]), id="dtype of the input"),
        pytest.param("FP32", f4([1]), f4([1]), id="shape"),
        pytest.param("FP32", np.zeros((0, 2), "f4"), np.zeros((0, 2), "f4"), id="no rows"),
    ],
)
def test_what_differs_is_not_served(tmp_path: Path, datatype: str, x: Any, y: Any) -> None:
    with pytest.raises(LoadFailedError):
        check(tmp_path, graphs.identity(datatype), graphs.npz({"x": x}, {"y": y}))


def test_rows_of_another_model_are_refused(tmp_path: Path) -> None:
    x = f4([1, 2])
    with pytest.raises(LoadFailedError, match="'z'"):
        check(tmp_path, graphs.identity("FP32"), graphs.npz({"z": x}, {"y": x}))


def objects() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=True, tolerance=np.float64(0), x=np.array([print], object))
    return stream.getvalue()


def no_tolerance() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, x=np.zeros(1))
    return stream.getvalue()


def bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tolerance.npy", b"\0" * (300 << 20))
    return stream.getvalue()


@pytest.mark.parametrize(
    "golden",
    [
        pytest.param(lambda: b"garbage", id="garbage"),
        pytest.param(lambda: b"", id="empty"),
        pytest.param(objects, id="objects"),
        pytest.param(bomb, id="a zip bomb"),
        pytest.param(no_tolerance, id="no tolerance"),
    ],
)
def test_a_file_that_is_no_golden_file_is_refused(tmp_path: Path, golden: Any) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(golden())
    with pytest.raises(LoadFailedError):
        Golden.read(path)


def test_rows_repeat_as_often_as_needed(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    x = f4([1], [2], [3])
    path.write_bytes(graphs.npz({"x": x}, {"y": x}))
    assert Golden.read(path).rows(5)["x"].ravel().tolist() == [1, 2, 3, 1, 2]
