"""A table is learned from alike, whatever format it comes in; hostile files are refused."""

import csv
import json
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.data_errors import DatasetInvalidError
from servery_trainer.datasets import inspect
from servery_trainer.examples import load_examples
from servery_trainer.spec import parse_spec
from tests.trainer.specs import tabular

CSV = dataset_pb2.DATASET_FORMAT_CSV
JSON_LINES = dataset_pb2.DATASET_FORMAT_JSON_LINES
PARQUET = dataset_pb2.DATASET_FORMAT_PARQUET
PENGUINS = Path(__file__).with_name("data") / "penguins.csv"

Write = Callable[[list[dict[str, str]], Path], object]


def typed(name: str, cell: str) -> Any:
    if not cell:
        return None
    if name == "clutch_complete":
        return cell == "true"
    return float(cell) if name.endswith(("_mm", "_g")) else cell


def write_json_lines(rows: list[dict[str, str]], path: Path) -> None:
    lines = []
    for number, row in enumerate(rows):
        values = {name: typed(name, cell) for name, cell in row.items()}
        kept = {k: v for k, v in values.items() if number % 2 == 0 or v is not None}
        lines.append(json.dumps(kept, ensure_ascii=number % 3 == 0))
    path.write_text("\ufeff" + "\n\n".join(lines) + "\n")


def write_parquet(rows: list[dict[str, str]], path: Path) -> None:
    columns: dict[str, Any] = {name: [typed(name, row[name]) for row in rows] for name in rows[0]}
    columns["first_egg"] = [day and date.fromisoformat(day) for day in columns["first_egg"]]
    columns["body_mass_g"] = np.array(
        [np.nan if mass is None else mass for mass in columns["body_mass_g"]], np.float32
    )
    pq.write_table(pa.table(columns), path, row_group_size=100)


@pytest.mark.parametrize(
    ("format", "write"), [(JSON_LINES, write_json_lines), (PARQUET, write_parquet)]
)
def test_penguins_are_the_same_in_every_format(format: Any, write: Write, tmp_path: Path) -> None:  # noqa: A002
    spec = parse_spec(tabular(target="species", missing=pb.MISSING_POLICY_IMPUTE_MEDIAN))
    path = tmp_path / "penguins"
    with PENGUINS.open(newline="") as file:
        write(list(csv.DictReader(file)), path)
    original, other = load_examples(spec, PENGUINS), load_examples(spec, path)
    assert other.types == original.types
    np.testing.assert_array_equal(other.target.values, original.target.values)
    for name, values in original.inputs.items():
        np.testing.assert_array_equal(other.inputs[name], values)
    listed = {column.name: column for column in inspect(path, format).columns}
    for column in inspect(PENGUINS, CSV).columns:
        same = listed[column.name]
        assert same.mean == pytest.approx(column.mean)  # blocks are of another size
        assert same.standard_deviation == pytest.approx(column.standard_deviation)
        for field in ("mean", "standard_deviation"):
            same.ClearField(field)
            column.ClearField(field)
        assert same == column


def test_times_of_parquet_are_dates(tmp_path: Path) -> None:
    path = tmp_path / "file"
    times = [datetime(2024, 2, 29, 13, 30, 15, 250_000), None]  # noqa: DTZ001  Parquet's own kind
    pq.write_table(pa.table({"at": times}), path)
    (column,) = inspect(path, PARQUET).columns
    assert (column.type, column.missing_count) == (dataset_pb2.COLUMN_TYPE_DATE, 1)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        pytest.param(b"", {"problem": "MALFORMED"}, id="empty"),
        pytest.param(b"{}\n{}\n", {"problem": "EMPTY"}, id="no values"),
        pytest.param(b'{"a": 1}\n[2]\n', {"problem": "MALFORMED", "row": "2"}, id="list"),
        pytest.param(b'{"a": 1}\n\n{"a": 1', {"problem": "MALFORMED", "row": "2"}, id="cut off"),
        pytest.param(b'{"a": NaN}', {"problem": "MALFORMED", "row": "1"}, id="NaN"),
        pytest.param(b'{"a": "\\ud800"}', {"problem": "MALFORMED", "row": "1"}, id="surrogate"),
        pytest.param(b'{"a": "\xff"}', {"problem": "MALFORMED", "row": "1"}, id="not UTF-8"),
        pytest.param(
            b'{"a": "\\u0000"}', {"problem": "MALFORMED", "row": "1", "column": "a"}, id="NUL"
        ),
        pytest.param(
            b'{"a": 1}\n{"a": {"b": 2}}',
            {"problem": "WRONG_TYPE", "row": "2", "column": "a"},
            id="nested",
        ),
        pytest.param(
            b'{"a": 1}\n{"a": 1, "b": 2, "a": 3}',
            {"problem": "DUPLICATE_COLUMN", "row": "2", "column": "a"},
            id="a key twice",
        ),
        pytest.param(b'{"a": ' + b"[" * 100_000, {"problem": "MALFORMED", "row": "1"}, id="deep"),
        pytest.param(
            b'{"a": "' + b"x" * (5 << 20) + b'"}', {"problem": "MALFORMED", "row": "1"}, id="long"
        ),
        pytest.param(
            b"\n".join(b'{"k%d": 1}' % n for n in range(5000)),
            {"problem": "TOO_LARGE", "row": "4097"},
            id="many keys",
        ),
        pytest.param(b"a,b\n1,2\n", {"problem": "MALFORMED"}, id="CSV"),
    ],
)
def test_refuses_json_lines(content: bytes, found: dict[str, str], tmp_path: Path) -> None:
    assert refused(content, JSON_LINES, tmp_path) == found


def parquet_bytes(path: Path, **columns: Any) -> bytes:
    pq.write_table(pa.table(columns), path)
    return path.read_bytes()


def test_refuses_parquet(tmp_path: Path) -> None:
    path = tmp_path / "made"
    good = parquet_bytes(path, a=["x", "y"] * 50)
    wrong = {"problem": "WRONG_TYPE", "column": "a"}
    assert refused(parquet_bytes(path, a=[[1], [2]]), PARQUET, tmp_path) == wrong
    assert refused(parquet_bytes(path, a=[b"1"]), PARQUET, tmp_path) == wrong
    assert refused(good[:-9], PARQUET, tmp_path) == {"problem": "MALFORMED"}
    assert refused(good[:4] + b"\0" * 60 + good[64:], PARQUET, tmp_path)["problem"] == "MALFORMED"
    assert refused(b"PAR1", PARQUET, tmp_path) == {"problem": "MALFORMED"}
    assert refused(parquet_bytes(path, a=pa.array([], pa.string())), PARQUET, tmp_path) == {
        "problem": "EMPTY"
    }
    big = {"problem": "TOO_LARGE", "column": "a"}
    assert refused(parquet_bytes(path, a=["x" * (5 << 20)]), PARQUET, tmp_path) == big


def test_a_small_parquet_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    text = pa.array(["x" * (4 << 20)])
    indices = pa.array(np.zeros(2000, np.int32))
    bomb = parquet_bytes(tmp_path / "made", a=pa.DictionaryArray.from_arrays(indices, text))
    assert len(bomb) < 1 << 20
    assert refused(bomb, PARQUET, tmp_path)["problem"] == "TOO_LARGE"


def refused(content: bytes, format: Any, directory: Path) -> dict[str, str]:  # noqa: A002
    path = directory / "upload"
    path.write_bytes(content)
    with pytest.raises(DatasetInvalidError) as error:
        inspect(path, format)
    assert str(path) not in str(error.value)
    return error.value.metadata
