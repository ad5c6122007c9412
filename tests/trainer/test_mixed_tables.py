"""Tables of numbers, categories, truth and dates, with gaps: real data, from file to graph."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.data_errors import DatasetInvalidError
from servery_trainer.datasets import inspect
from servery_trainer.examples import Examples, load_examples
from servery_trainer.spec import parse_spec
from tests.trainer.job_process import Run, SuccessiveJobs
from tests.trainer.specs import tabular

PENGUINS = Path(__file__).with_name("data") / "penguins.csv"
IMPUTE = pb.MISSING_POLICY_IMPUTE_MEDIAN


def load(content: str, path: Path, **task: Any) -> Examples:
    path.write_text(content)
    return load_examples(parse_spec(tabular(**task)), path)


def column(values: list[str]) -> str:
    rows = (f"{index},{value},{index % 2}\n" for index, value in enumerate(values))
    return "id,x,kind\n" + "".join(rows)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "2.5", "", "-3e4"] * 2, dataset_pb2.COLUMN_TYPE_NUMERIC),
        (["true", "False", "", "TRUE"] * 2, dataset_pb2.COLUMN_TYPE_BOOLEAN),
        (["2024-02-29", "1999-12-31T23:59", "", "2000-01-01 00:00:00"] * 2, 4),
        (["2023-02-29"] * 8, dataset_pb2.COLUMN_TYPE_TEXT),
        (["yes", "no", "1", "2"] * 2, dataset_pb2.COLUMN_TYPE_TEXT),
    ],
)
def test_a_column_is_what_its_cells_are(tmp_path: Path, cells: list[str], kind: int) -> None:
    path = tmp_path / "file"
    assert load(column(cells), path, missing=IMPUTE).types["x"] == kind
    assert inspect(path, dataset_pb2.DATASET_FORMAT_CSV).columns[1].type == kind


@pytest.mark.parametrize(
    ("cells", "odd", "problem"),
    [
        (["1", "2", "3", "4", "5", "6"], "six", "NOT_A_NUMBER"),
        (["2024-02-29"] * 6, "29.2.2024", "WRONG_TYPE"),
        (["2024-02-29"] * 6, "2024-02-30", "WRONG_TYPE"),
        (["a"] * 6, "x" * 40_000, "TOO_LARGE"),
    ],
)
def test_one_odd_cell_among_many_is_named(
    tmp_path: Path, cells: list[str], odd: str, problem: str
) -> None:
    with pytest.raises(DatasetInvalidError) as refused:
        load(column([*cells, odd, "", ""]), tmp_path / "file", missing=IMPUTE)
    expected = {"problem": problem, "row": "7", "column": "x"}
    assert refused.value.metadata == expected


def test_a_column_is_what_the_spec_says(tmp_path: Path) -> None:
    types = {"x": dataset_pb2.COLUMN_TYPE_TEXT}
    examples = load(column(["007", "7"] * 4), tmp_path / "file", column_types=types)
    assert examples.inputs["x"].ravel().tolist() == ["007", "7"] * 4


def test_a_column_that_is_not_what_the_spec_says_is_refused(tmp_path: Path) -> None:
    types = {"x": dataset_pb2.COLUMN_TYPE_BOOLEAN}
    with pytest.raises(DatasetInvalidError) as refused:
        load(column(["true", "maybe"] * 4), tmp_path / "file", column_types=types)
    assert refused.value.metadata == {"problem": "WRONG_TYPE", "row": "2", "column": "x"}


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ({"column_types": {"kind": 2}}, "column_types[kind]"),
        ({"column_types": {"x": 0}}, "column_types[x]"),
        ({"column_types": {"x": 99}}, "column_types[x]"),
        ({"features": ["y"], "column_types": {"x": 2}}, "column_types[x]"),
        ({"fill": pb.Fill(number=float("nan"))}, "fill.number"),
        ({"fill": pb.Fill(number=1e39)}, "fill.number"),
        ({"fill": pb.Fill(date="2023-02-29")}, "fill.date"),
    ],
)
def test_refuses_types_and_fills_that_cannot_be(task: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldInvalidError) as refused:
        parse_spec(tabular(**task))
    assert refused.value.metadata["field"] == f"training_job.spec.tabular_classification.{field}"


@pytest.mark.parametrize(("policy", "left"), [("DROP", 7), ("KEEP", 9)])
def test_rows_with_the_same_words_are_duplicates(tmp_path: Path, policy: str, left: int) -> None:
    rows = "".join(f"{text},{kind}\n" for text in ("a", "b", "ab") for kind in ("no", "yes"))
    examples = load(
        f"x,kind\n{rows},no\n,no\na,no\n",
        tmp_path / "file",
        missing=IMPUTE,
        duplicates=f"DUPLICATE_POLICY_{policy}",
    )
    assert len(examples.target.values) == left


@pytest.fixture(scope="module")
def job(jobs: SuccessiveJobs, tmp_path_factory: pytest.TempPathFactory) -> Run:
    spec = tabular(target="species", missing=IMPUTE)
    return jobs.run(spec, PENGUINS, tmp_path_factory.mktemp("penguins") / "out")


@pytest.mark.slow
def test_penguins_are_told_apart_from_raw_columns(job: Run) -> None:
    assert job.exit == 0, job.lines[-1]
    assert job.result.metrics["accuracy"] >= 0.96
    assert job.result.parity.label_agreement == 1
    assert job.result.parity.max_relative_error < 1e-5
    signature = {i["name"]: i["datatype"] for i in job.document("signature.json")["inputs"]}
    assert {signature[name] for name in ("island", "first_egg", "clutch_complete", "sex")} == {
        "BYTES"
    }
    assert signature["body_mass_g"] == "FP32"


@pytest.mark.slow
def test_the_graph_takes_the_rows_of_the_file_as_they_are(job: Run) -> None:
    session = ort.InferenceSession(job.out / "model.onnx")
    with PENGUINS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    inputs: dict[str, Any] = {}
    for tensor in session.get_inputs():
        cells = [row[tensor.name] for row in rows]
        inputs[tensor.name] = (
            np.array([[float(cell or "nan")] for cell in cells], np.float32)
            if tensor.type == "tensor(float)"
            else np.array([[cell] for cell in cells], np.object_)
        )
    (labels,) = session.run(["label"], inputs)
    right = [label == row["species"] for (label,), row in zip(labels, rows, strict=True)]
    assert np.mean(right) >= 0.96


@pytest.mark.slow
def test_statistics_count_the_words(job: Run) -> None:
    island = job.document("statistics.json")["inputs"]["island"]
    assert island["distinct_count"] == 3
    assert island["most_frequent"][0]["value"] == "Biscoe"
