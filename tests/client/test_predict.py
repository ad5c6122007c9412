"""Rows of files become inputs of a model, whatever the format."""

import json
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from servery.cli.predict import read_inputs
from servery.inference.v1 import grpc_service_pb2 as pb

METADATA = pb.ModelMetadataResponse(
    inputs=[
        pb.ModelMetadataResponse.TensorMetadata(name="mass", datatype="FP32", shape=[-1, 1]),
        pb.ModelMetadataResponse.TensorMetadata(name="island", datatype="BYTES", shape=[-1, 1]),
        pb.ModelMetadataResponse.TensorMetadata(name="day", datatype="BYTES", shape=[-1, 1]),
        pb.ModelMetadataResponse.TensorMetadata(name="ok", datatype="BYTES", shape=[-1, 1]),
    ]
)


def write_csv(path: Path) -> None:
    path.write_text(
        "mass,island,day,ok,other\n3.5, Dream,2024-02-29,true,x\n,,,,\n7,1.50,2024-03-01,false,x\n"
    )


def write_json_lines(path: Path) -> None:
    rows = [
        {"mass": 3.5, "island": "Dream", "day": "2024-02-29", "ok": True, "other": [1]},
        {"island": None},
    ]
    last = '{"mass": 7, "island": 1.50, "day": "2024-03-01", "ok": false}'
    path.write_text("\n\n".join([*map(json.dumps, rows), last]) + "\n")


def write_parquet(path: Path) -> None:
    columns = {
        "mass": [3.5, None, 7.0],
        "island": ["Dream", None, "1.50"],
        "day": [date(2024, 2, 29), None, date(2024, 3, 1)],
        "ok": [True, None, False],
    }
    parquet.write_table(pa.table(columns), path)


@pytest.mark.parametrize(
    ("suffix", "write"),
    [(".csv", write_csv), (".jsonl", write_json_lines), (".parquet", write_parquet)],
)
def test_rows_are_the_same_in_every_format(
    tmp_path: Path, suffix: str, write: Callable[[Path], Any]
) -> None:
    path = tmp_path / f"rows{suffix}"
    write(path)
    inputs = read_inputs(path, METADATA, limit=10)
    np.testing.assert_array_equal(inputs["mass"], [3.5, np.nan, 7])
    assert inputs["island"] == ["Dream", "", "1.50"]
    assert inputs["day"] == ["2024-02-29", "", "2024-03-01"]
    assert inputs["ok"] == ["true", "", "false"]
    assert "other" not in inputs
    assert len(read_inputs(path, METADATA, limit=2)["mass"]) == 2


def test_times_of_parquet_are_written_as_the_trainer_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    at = datetime(2024, 2, 29, 18, 30, 15, 250_000)  # noqa: DTZ001  Parquet's own kind
    table = {"mass": [1.0], "island": ["x"], "day": [at], "ok": [True]}
    parquet.write_table(pa.table(table), path)
    assert read_inputs(path, METADATA, limit=1)["day"] == ["2024-02-29 18:30:15"]


def test_says_what_a_file_lacks(tmp_path: Path) -> None:
    for name, content in (("rows.csv", "mass,ok\n1,true\n"), ("rows.jsonl", "[1]\n")):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(ValueError, match=r"island|object"):
            read_inputs(path, METADATA, limit=1)
