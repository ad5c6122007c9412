"""The parts of a bundle that need no training."""

import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from servery_trainer import bundle
from servery_trainer.classification import Classification
from servery_trainer.examples import Examples
from servery_trainer.split import Split
from servery_trainer.targets import Classes


def test_golden_rows_show_every_class_and_leave_out_close_calls() -> None:
    probabilities = np.full((400, 4), 0.1, np.float32)
    codes = np.arange(400) % 3
    codes[7] = 3
    probabilities[np.arange(400), codes] = 0.7
    probabilities[::4] = [0.25, 0.25, 0.24, 0.26]  # three of four rows are clear
    clearness = Classification(("a", "b", "c", "d")).clearness_B(probabilities)
    picked = bundle.pick_golden(clearness, codes)
    assert len(picked) == bundle.GOLDEN_ROWS
    assert 7 in picked
    assert set(codes[picked]) == {0, 1, 2, 3}
    assert not np.any(picked % 4 == 0)
    assert np.all(np.diff(picked) > 0)


def test_golden_rows_are_all_rows_if_there_are_few() -> None:
    np.testing.assert_array_equal(bundle.pick_golden(np.zeros(2), np.array([0, 1])), [0, 1])


def test_golden_arrays_load_without_pickle() -> None:
    probabilities = np.array([[0.2, 0.8], [0.9, 0.1]], np.float32)
    inputs = {"mean radius": np.array([[1], [2]], np.float32)}
    content = bundle.golden(inputs, Classification(("nein", "jä")).decode(probabilities), 1e-4)
    arrays = np.load(io.BytesIO(content), allow_pickle=False)
    assert arrays["output:label"].tolist() == [["jä"], ["nein"]]
    assert arrays["input:mean radius"].dtype == np.float32
    assert arrays["tolerance"] == np.float64(1e-4)


def test_statistics_describe_the_training_part_only() -> None:
    examples = Examples(
        types={},
        inputs={"a": np.array([[1], [3], [np.nan], [1000]], np.float32)},
        target=Classes(values=np.array([0, 1, 1, 0]), labels=("x", "y")),
        split=Split(np.array([0, 1]), np.array([2]), np.array([3])),
        row_numbers_B=np.arange(1, 5),
        total=4,
        dropped_missing=0,
        dropped_duplicates=0,
        kept_duplicates=0,
    )
    statistics = bundle.statistics(examples, np.array([0, 1, 2]))
    column = statistics["inputs"]["a"]
    assert (column["count"], column["missing_count"]) == (3, 1)
    assert (column["minimum"], column["mean"], column["maximum"]) == (1, 2, 3)
    assert column["quantiles"]["0.5"] == 2
    assert statistics["labels"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("u1", "UINT8"), ("i8", "INT64"), ("f2", "FP16"), ("f4", "FP32"), ("u2", "UINT16")],
)
def test_the_signature_names_datatypes_of_the_wire(dtype: str, name: str) -> None:
    signature = bundle.signature(
        "t", {"image": np.zeros((2, 8, 9, 1), dtype)}, Classification(("x", "y")).outputs
    )
    assert signature["inputs"][0]["datatype"] == name
    assert signature["inputs"][0]["shape"] == [-1, 8, 9, 1]
    assert signature["outputs"][1]["labels"] == ["x", "y"]


def test_a_bundle_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "new" / "bundle"
    with pytest.raises(ValueError, match="nan"):
        bundle.write(out, onnx.ModelProto(), b"", {"metrics.json": {"loss": float("nan")}}, {})
    (out / "metrics.json").mkdir(parents=True)  # in the way: the third file cannot be written
    with pytest.raises(IsADirectoryError):
        bundle.write(out, onnx.ModelProto(), b"x", {"metrics.json": {}, "profile.json": {}}, {})
    assert [path.name for path in out.iterdir()] == ["metrics.json"]
    (out / "metrics.json").rmdir()
    bundle.write(out, onnx.ModelProto(), b"x", {"metrics.json": {"loss": 1}}, {"roc.png": b"png"})
    assert sorted(path.name for path in out.iterdir()) == [
        "golden.npz",
        "metrics.json",
        "model.onnx",
        "roc.png",
    ]
    assert json.loads((out / "metrics.json").read_text()) == {"loss": 1}
