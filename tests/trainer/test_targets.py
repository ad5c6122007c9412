"""What rows may teach: numbers and sets of labels are read, or refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer import label_sets
from servery_trainer.data_errors import DatasetInvalidError, Problem
from servery_trainer.examples import Examples, load_examples
from servery_trainer.label_sets import LabelSets
from servery_trainer.spec import parse_spec
from servery_trainer.split import split_rows
from servery_trainer.targets import Place
from tests.trainer.specs import table


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "dataset"


def load(file: Path, content: str, task: str, **fields: Any) -> Examples:
    file.write_text(content)
    return load_examples(parse_spec(table(task, **fields)), file)


def numbers(*cells: str) -> str:
    return "a,y\n" + "".join(f"{row},{cell}\n" for row, cell in enumerate(cells))


def lists(*cells: str) -> str:
    return "a,topics\n" + "".join(f"{row},{cell}\n" for row, cell in enumerate(cells))


def truths(*rows: str) -> str:
    return "a,hot,wet\n" + "".join(f"{number},{row}\n" for number, row in enumerate(rows))


def test_numbers_are_read_as_they_are(file: Path) -> None:
    examples = load(file, numbers("1.5", "-2e3", "0", "7"), "tabular_regression", target="y")
    assert examples.target.values.dtype == np.float32
    np.testing.assert_array_equal(examples.target.values, [[1.5], [-2000], [0], [7]])
    assert examples.target.width == 1
    assert list(examples.inputs) == ["a"]


@pytest.mark.parametrize(
    ("cells", "problem", "place"),
    [
        (("1", "2", "many"), Problem.NOT_A_NUMBER, {"row": "3", "column": "y"}),
        (("1", "nan", "3"), Problem.NOT_A_NUMBER, {"row": "2", "column": "y"}),
        (("inf", "2", "3"), Problem.NOT_A_NUMBER, {"row": "1", "column": "y"}),
        (("1", "2", "1e39"), Problem.NOT_A_NUMBER, {"row": "3", "column": "y"}),
        (("1", "", "3"), Problem.MISSING_VALUE, {"row": "2", "column": "y"}),
        (("4", "4", "4", "4.0"), Problem.CONSTANT_TARGET, {"column": "y"}),
        (("1", "2"), Problem.TOO_FEW_ROWS, {}),
    ],
)
def test_refuses_numbers(
    file: Path, cells: tuple[str, ...], problem: Problem, place: dict[str, str]
) -> None:
    with pytest.raises(DatasetInvalidError) as refused:
        load(file, numbers(*cells), "tabular_regression", target="y")
    assert refused.value.metadata == {"problem": problem} | place


def test_labels_are_read_from_lists(file: Path) -> None:
    cells = ("wool; oil", "oil", ";", "wool;;wool", " oil ;wool", ";")
    examples = load(file, lists(*cells), "tabular_multi_label", targets=["topics"], separator=";")
    assert isinstance(examples.target, LabelSets)
    assert examples.target.labels == ("oil", "wool")
    np.testing.assert_array_equal(
        examples.target.values, [[1, 1], [1, 0], [0, 0], [0, 1], [1, 1], [0, 0]]
    )


def test_labels_are_read_from_columns(file: Path) -> None:
    rows = ("1,0", "TRUE,false", "0,1", "0,1", "0,true", "1,0")
    examples = load(file, truths(*rows), "tabular_multi_label", targets=["wet", "hot"])
    assert isinstance(examples.target, LabelSets)
    assert examples.target.labels == ("wet", "hot")
    np.testing.assert_array_equal(examples.target.values[:, 0], [0, 0, 1, 1, 1, 0])
    assert list(examples.inputs) == ["a"]


def test_texts_teach_numbers_and_labels_too(file: Path) -> None:
    lines = "t,y,topics\n" + "".join(f"word number {n},{n},{'ab'[n % 2]}\n" for n in range(6))
    stars = load(file, lines, "text_regression", text="t", target="y")
    topics = load(file, lines, "text_multi_label", text="t", targets=["topics"], separator=";")
    assert list(stars.inputs) == list(topics.inputs) == ["t"]
    np.testing.assert_array_equal(stars.target.values[:, 0], np.arange(6))
    np.testing.assert_array_equal(topics.target.values, [[1, 0], [0, 1]] * 3)


@pytest.mark.parametrize(
    ("content", "separator", "problem", "place"),
    [
        pytest.param(
            truths("1,0", "2,1", "0,1"),
            "",
            Problem.WRONG_TYPE,
            {"row": "2", "column": "hot"},
            id="no truth",
        ),
        pytest.param(
            truths("1,0", "0,", "0,1"),
            "",
            Problem.MISSING_VALUE,
            {"row": "2", "column": "wet"},
            id="a gap",
        ),
        pytest.param(
            truths(*["1,0", "1,1"] * 3), "", Problem.ONE_CLASS, {"column": "hot"}, id="always"
        ),
        pytest.param(
            truths(*["1,0", "0,0"] * 3), "", Problem.ONE_CLASS, {"column": "wet"}, id="never"
        ),
        pytest.param(
            truths(*["1,0", "0,1"] * 3, "1,0", "1,0"),
            "",
            None,
            {},
            id="three of each are enough",
        ),
        pytest.param(
            truths(*["1,0", "0,0"] * 3, "0,1", "1,1"),
            "",
            Problem.RARE_CLASS,
            {"column": "wet"},
            id="two rows of a label",
        ),
        pytest.param(
            lists("x", "x", ";", ";", "x", ";").replace("topics", "hot"),
            ";",
            Problem.ONE_CLASS,
            {"column": "hot"},
            id="one label",
        ),
        pytest.param(
            lists(*[";"] * 6).replace("topics", "hot"),
            ";",
            Problem.ONE_CLASS,
            {"column": "hot"},
            id="no label",
        ),
        pytest.param(
            lists("x", "y", "", "x;y").replace("topics", "hot"),
            ";",
            Problem.MISSING_VALUE,
            {"row": "3", "column": "hot"},
            id="empty cell",
        ),
    ],
)
def test_refuses_labels(
    file: Path, content: str, separator: str, problem: Problem | None, place: dict[str, str]
) -> None:
    targets = ["hot"] if separator else ["hot", "wet"]
    fields = {"targets": targets, "separator": separator}
    if problem is None:
        load(file, content, "tabular_multi_label", **fields)
        return
    with pytest.raises(DatasetInvalidError) as refused:
        load(file, content, "tabular_multi_label", **fields)
    assert refused.value.metadata == {"problem": problem} | place


def test_refuses_more_labels_than_can_be_learned(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_sets, "MAX_LABELS", 2)
    with pytest.raises(DatasetInvalidError) as refused:
        load(file, lists("x", "y", "z"), "tabular_multi_label", targets=["topics"], separator=";")
    assert refused.value.metadata == {"problem": "TOO_LARGE", "column": "topics"}


@pytest.mark.parametrize(
    ("task", "fields", "field"),
    [
        ("tabular_regression", {}, "target"),
        ("tabular_regression", {"target": "y", "features": ["y"]}, "features[0]"),
        ("tabular_regression", {"target": "y", "slice_columns": [""]}, "slice_columns[0]"),
        ("tabular_multi_label", {}, "targets"),
        ("tabular_multi_label", {"targets": ["a", "a"]}, "targets[1]"),
        ("tabular_multi_label", {"targets": ["a", "b"], "separator": ";"}, "targets[1]"),
        ("tabular_multi_label", {"targets": ["a"], "features": ["b", "a"]}, "features[1]"),
        ("text_multi_label", {"targets": ["a"], "text": "a"}, "text"),
        ("text_regression", {"target": "a"}, "text"),
    ],
)
def test_refuses_specs(task: str, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldInvalidError) as refused:
        parse_spec(table(task, **fields))
    assert refused.value.metadata["field"] == f"training_job.spec.{task}.{field}"


def test_numbers_have_no_classes_to_weigh() -> None:
    spec = table("tabular_regression", target="y")
    spec.training.class_weights = pb.CLASS_WEIGHTS_BALANCED
    with pytest.raises(FieldInvalidError) as refused:
        parse_spec(spec)
    assert refused.value.metadata["field"] == "training_job.spec.training.class_weights"


@pytest.mark.parametrize(
    "task", ["tabular_regression", "tabular_multi_label", "text_multi_label", "text_regression"]
)
def test_a_parsed_spec_renders_to_the_same(task: str) -> None:
    target = {"targets": ["y", "z"]} if "label" in task else {"target": "y"}
    text = {"text": "t"} if "text" in task else {}
    spec = parse_spec(table(task, slice_columns=["s"], **target, **text))
    assert spec.task.name == task
    assert parse_spec(spec.to_proto()) == spec


def test_columns_to_report_by_need_not_be_features(file: Path) -> None:
    content = "a,s,y\n" + "".join(f"{row},{'xy'[row % 2]},{row}\n" for row in range(5)) + "9,,3\n"
    fields: dict[str, Any] = {"target": "y", "features": ["a"], "slice_columns": ["s"]}
    examples = load(file, content, "tabular_regression", **fields)
    assert list(examples.inputs) == ["a"]
    assert examples.aside["s"].tolist() == ["x", "y", "x", "y", "x", ""]
    with pytest.raises(DatasetInvalidError) as refused:
        load(file, content, "tabular_regression", **(fields | {"slice_columns": ["z"]}))
    assert refused.value.metadata == {"problem": "MISSING_COLUMN", "column": "z"}


def test_every_part_of_a_split_shows_the_rarest_label() -> None:
    rng = np.random.default_rng(0)
    values = (rng.random((200, 4)) < [0.5, 0.5, 0.02, 0.3]).astype(np.uint8)
    values[:3, 2] = 1
    target = LabelSets(values=values, labels=tuple("abcd"), places=(Place(column="x"),))
    split = split_rows(target.strata_B, validation_fraction=0.15, test_fraction=0.15, seed=0)
    for rows in (split.train, split.validation, split.test):
        assert values[rows, 2].any()
