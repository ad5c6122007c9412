"""What rows a job learns from, and what data it refuses to learn from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.data_errors import DatasetInvalidError, Problem
from servery_trainer.declared import write_types
from servery_trainer.examples import Examples, load_examples
from servery_trainer.spec import parse_spec
from servery_trainer.targets import Classes
from tests.trainer.specs import image, tabular


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "dataset"


def table(rows: str = "") -> str:
    """Six good rows of two classes, then `rows`."""
    return "a,b,kind\n1,2,no\n2,3,yes\n3,4,no\n4,5,yes\n5,6,no\n6,7,yes\n" + rows


def load_table(file: Path, content: str, **task: Any) -> Examples:
    file.write_text(content)
    return load_examples(parse_spec(tabular(**task)), file)


def classes(examples: Examples) -> Classes:
    assert isinstance(examples.target, Classes)
    return examples.target


def test_reads_a_table_column_by_column(file: Path) -> None:
    examples = load_table(file, table())
    assert list(examples.inputs) == ["a", "b"]
    column = examples.inputs["b"]
    assert column.dtype == np.float32
    assert column.shape == (6, 1)
    np.testing.assert_array_equal(column[:, 0], [2, 3, 4, 5, 6, 7])
    assert classes(examples).labels == ("no", "yes")
    np.testing.assert_array_equal(examples.target.values, [0, 1] * 3)
    np.testing.assert_array_equal(examples.row_numbers_B, np.arange(1, 7))


def test_takes_the_features_asked_for_in_their_order(file: Path) -> None:
    assert list(load_table(file, table(), features=["b", "a"]).inputs) == ["b", "a"]
    assert list(load_table(file, table(), features=["b"]).inputs) == ["b"]


@pytest.mark.parametrize(
    ("texts", "labels"),
    [(["10", "9", "-1"], ("-1", "9", "10")), (["10", "9", "x"], ("10", "9", "x"))],
)
def test_orders_labels_by_number_if_all_are(
    file: Path, texts: list[str], labels: tuple[str, ...]
) -> None:
    rows = "".join(f"{n},{texts[n % 3]}\n" for n in range(9))
    assert classes(load_table(file, f"a,kind\n{rows}")).labels == labels


def test_drops_rows_with_missing_values_where_asked(file: Path) -> None:
    examples = load_table(
        file, table(",9,no\n9, ,no\n7,8,no\n"), missing=pb.MISSING_POLICY_DROP_ROWS
    )
    assert (examples.total, examples.dropped_missing) == (9, 2)
    assert examples.row_numbers_B[-1] == 9


def test_keeps_missing_values_to_impute(file: Path) -> None:
    examples = load_table(file, table(",9,no\n"), missing=pb.MISSING_POLICY_IMPUTE_MEDIAN)
    assert np.isnan(examples.inputs["a"][6, 0])
    assert examples.dropped_missing == 0


@pytest.mark.parametrize(
    ("policy", "left", "dropped", "kept"),
    [(pb.DUPLICATE_POLICY_DROP, 7, 2, 0), (pb.DUPLICATE_POLICY_KEEP, 9, 0, 2)],
)
def test_counts_duplicates_and_drops_or_keeps_them(
    file: Path, policy: Any, left: int, dropped: int, kept: int
) -> None:
    examples = load_table(file, table("1.0,2,no\n1,2,yes\n6,7,yes\n"), duplicates=policy)
    assert len(examples.target.values) == left
    assert (examples.dropped_duplicates, examples.kept_duplicates) == (dropped, kept)


def test_rows_with_the_same_gap_are_duplicates(file: Path) -> None:
    examples = load_table(
        file,
        table(",2,no\n,2,no\n-0.0,2,no\n0,2,no\n"),
        missing=pb.MISSING_POLICY_IMPUTE_MEDIAN,
        duplicates=pb.DUPLICATE_POLICY_DROP,
    )
    assert examples.dropped_duplicates == 2


@pytest.mark.parametrize(
    ("content", "task", "problem", "place"),
    [
        pytest.param("a,kind\n", {}, Problem.EMPTY, {}, id="no rows"),
        pytest.param(
            table("7,,no\n"), {}, Problem.MISSING_VALUE, {"row": "7", "column": "b"}, id="gap"
        ),
        pytest.param(
            table("7,8,\n"),
            {"missing": pb.MISSING_POLICY_DROP_ROWS},
            Problem.MISSING_VALUE,
            {"row": "7", "column": "kind"},
            id="gap in the target",
        ),
        pytest.param(
            "a,b,kind\n" + "".join(f"{n},,{n % 2}\n" for n in range(6)),
            {"missing": pb.MISSING_POLICY_IMPUTE_MEDIAN},
            Problem.MISSING_VALUE,
            {"row": "1", "column": "b"},
            id="empty column",
        ),
        pytest.param(
            table("7,big,no\n"), {}, Problem.NOT_A_NUMBER, {"row": "7", "column": "b"}, id="text"
        ),
        pytest.param(
            table("7,nan,no\n"), {}, Problem.NOT_A_NUMBER, {"row": "7", "column": "b"}, id="nan"
        ),
        pytest.param(
            table("1e39,8,no\n"),
            {},
            Problem.NOT_A_NUMBER,
            {"row": "7", "column": "a"},
            id="beyond float32",
        ),
        pytest.param(
            table("7,x,no\ny,8,no\n"),
            {},
            Problem.NOT_A_NUMBER,
            {"row": "7", "column": "b"},
            id="the first of two",
        ),
        pytest.param(
            table('"7\n",8,no\n8,x,no\n'),
            {},
            Problem.NOT_A_NUMBER,
            {"row": "8", "column": "b"},
            id="after a line break",
        ),
        pytest.param(table("3,4,no\n"), {}, Problem.DUPLICATE_ROW, {"row": "7"}, id="repeated row"),
        pytest.param(
            "a,kind\n1,x\n2,x\n3,x\n", {}, Problem.ONE_CLASS, {"column": "kind"}, id="one class"
        ),
        pytest.param(
            "a,b,kind\n,1,x\n,2,x\n,3,x\n1,1,y\n2,2,y\n3,3,y\n",
            {"missing": pb.MISSING_POLICY_DROP_ROWS},
            Problem.ONE_CLASS,
            {"column": "kind"},
            id="one class left",
        ),
        pytest.param(
            table("7,8,rare\n8,9,rare\n"),
            {},
            Problem.RARE_CLASS,
            {"column": "kind"},
            id="two rows of a class",
        ),
        pytest.param(
            table(), {"target": "Kind"}, Problem.MISSING_COLUMN, {"column": "Kind"}, id="no target"
        ),
        pytest.param(
            table(), {"features": ["z"]}, Problem.MISSING_COLUMN, {"column": "z"}, id="no feature"
        ),
        pytest.param(
            "kind\nx\ny\n", {}, Problem.MISSING_COLUMN, {"column": "kind"}, id="target only"
        ),
        pytest.param(
            "label,kind\n1,x\n",
            {},
            Problem.DUPLICATE_COLUMN,
            {"column": "label"},
            id="named like an output",
        ),
    ],
)
def test_refuses_tables(
    file: Path, content: str, task: dict[str, Any], problem: Problem, place: dict[str, str]
) -> None:
    with pytest.raises(DatasetInvalidError) as refused:
        load_table(file, content, **task)
    assert refused.value.metadata == {"problem": problem} | place
    for value in place.values():
        assert value in str(refused.value)


def test_messages_name_both_rows_and_the_value(file: Path) -> None:
    with pytest.raises(DatasetInvalidError, match="row 7 repeats row 3"):
        load_table(file, table("3,4,no\n"))
    with pytest.raises(DatasetInvalidError, match="'12,5'"):
        load_table(file, table('7,"12,5",no\n'))


def test_the_target_may_be_named_like_an_output(file: Path) -> None:
    content = table().replace("kind", "label")
    assert classes(load_table(file, content, target="label")).labels == ("no", "yes")


def test_refuses_a_network_too_large_for_the_rows(file: Path) -> None:
    file.write_text(table())
    message = tabular()
    message.dense.hidden_units.extend([4096] * 16)
    with pytest.raises(FieldInvalidError) as refused:
        load_examples(parse_spec(message), file)
    assert refused.value.metadata["field"] == "training_job.spec.dense.hidden_units"


WARDS = "ward,day,size,kind\n" + "".join(
    f"w{row // 4},2024-01-{1 + row // 2:02},{row / 7},{['no', 'yes'][row % 2]}\n"
    for row in range(40)
)


@pytest.mark.parametrize(
    ("column", "method"),
    [("ward", dataset_pb2.SPLIT_METHOD_GROUP), ("day", dataset_pb2.SPLIT_METHOD_TIME)],
)
def test_rows_are_divided_by_a_column_that_is_no_feature(
    file: Path, column: str, method: Any
) -> None:
    file.write_text(WARDS)
    spec = tabular(duplicates=pb.DUPLICATE_POLICY_KEEP)
    spec.split.CopyFrom(pb.Split(method=method, column=column))
    examples = load_examples(parse_spec(spec), file)
    assert list(examples.inputs) == [name for name in ("ward", "day", "size") if name != column]
    assert not examples.aside
    rows = [line.split(",") for line in WARDS.splitlines()[1:]]
    parts = [
        {rows[index][0 if column == "ward" else 1] for index in part}
        for part in (examples.split.train, examples.split.validation, examples.split.test)
    ]
    assert not parts[0] & parts[1] | parts[1] & parts[2] | parts[0] & parts[2]
    if column == "day":
        assert max(parts[0]) < min(parts[1]) <= max(parts[1]) < min(parts[2])


def test_refuses_to_divide_by_what_is_not_there(file: Path) -> None:
    file.write_text(WARDS)
    spec = tabular()
    spec.split.CopyFrom(pb.Split(method=dataset_pb2.SPLIT_METHOD_GROUP, column="bed"))
    with pytest.raises(DatasetInvalidError) as error:
        load_examples(parse_spec(spec), file)
    assert error.value.metadata["problem"] == "MISSING_COLUMN"
    images = image()
    images.split.CopyFrom(spec.split)
    with pytest.raises(FieldInvalidError) as refused:
        parse_spec(images)
    assert refused.value.metadata["field"] == "training_job.spec.split.column"


def test_what_rows_are_divided_by_is_learned_from_only_if_named(file: Path) -> None:
    file.write_text("ward,kind\n" + "".join(f"{n % 4},{'ab'[n // 4 % 2]}\n" for n in range(64)))
    spec = tabular(duplicates=pb.DUPLICATE_POLICY_KEEP)
    spec.split.CopyFrom(pb.Split(method=dataset_pb2.SPLIT_METHOD_GROUP, column="ward"))
    with pytest.raises(DatasetInvalidError) as error:
        load_examples(parse_spec(spec), file)
    assert error.value.metadata == {"problem": "MISSING_COLUMN", "column": "ward"}
    spec.tabular_classification.features.append("ward")
    assert list(load_examples(parse_spec(spec), file).inputs) == ["ward"]


@pytest.mark.parametrize(("column", "features"), [("ward", []), ("bed", []), ("size", ["day"])])
def test_only_numbers_that_are_learned_from_are_clipped(
    file: Path, column: str, features: list[str]
) -> None:
    with pytest.raises(FieldInvalidError) as error:
        load_table(file, WARDS, clip={column: pb.Clip(lower=0)}, features=features)
    field = f"training_job.spec.tabular_classification.clip[{column}]"
    assert error.value.metadata["field"] == field


def test_columns_are_what_was_declared_at_the_upload(file: Path) -> None:
    write_types(file, {"a": dataset_pb2.COLUMN_TYPE_TEXT})
    assert load_table(file, table()).types["a"] == dataset_pb2.COLUMN_TYPE_TEXT
    number = {"a": dataset_pb2.COLUMN_TYPE_NUMERIC}
    assert load_table(file, table(), column_types=number).types == {"a": 1, "b": 1}
