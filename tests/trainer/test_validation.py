"""What reports on data find, and what they leave alone."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from servery.trainer.v1 import dataset_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer import examined
from servery_trainer.data_errors import DatasetInvalidError
from servery_trainer.declared import write_types
from servery_trainer.validation import Validation, validate
from tests.trainer.packs import as_zip, image
from tests.trainer.service import Client, failure, running_trainer

NAME = f"tenants/default/datasets/{'0' * 64}"
ROWS = 300
RNG = np.random.Generator(np.random.PCG64(5))
HONEST = {
    "size": [f"{number:.6f}" for number in RNG.normal(size=ROWS)],
    "color": RNG.choice(["red", "green", "blue"], ROWS).tolist(),
    "kind": RNG.choice(["a", "b"], ROWS).tolist(),
}


def table(**columns: Any) -> bytes:
    rows = zip(*columns.values(), strict=True)
    return "\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "upload"


def report(
    path: Path,
    content: bytes,
    format: Any = pb.DATASET_FORMAT_CSV,  # noqa: A002
    declared: Any = None,
    **asked: Any,
) -> list[pb.Finding]:
    path.write_bytes(content)
    write_types(path, declared or {})
    request = pb.ValidateDatasetRequest(**{"name": NAME, "target": "kind"} | asked)
    return list(validate(Validation.parse(request), format, path).findings)


def found(findings: Sequence[pb.Finding], kind: str) -> pb.Finding:
    (one,) = [f for f in findings if f.kind == pb.FindingKind.Value(f"FINDING_KIND_{kind}")]
    assert one.message
    return one


def kinds(findings: Sequence[pb.Finding]) -> set[tuple[str, str]]:
    return {(pb.FindingKind.Name(f.kind).removeprefix("FINDING_KIND_"), f.column) for f in findings}


def test_honest_data_are_left_alone(path: Path) -> None:
    assert not report(path, table(**HONEST))


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        pytest.param(["", "1", "2"] * 100, ("MISSING", "INFO", [1, 4]), id="missing"),
        pytest.param(["", "", "1", "2"] * 75, None, id="half missing"),
        pytest.param(["", "", "", "1", "", "2"] * 50, ("MISSING", "WARNING", [1, 2]), id="most"),
        pytest.param(["7"] * ROWS, ("CONSTANT", "WARNING", []), id="constant"),
        pytest.param([*range(ROWS)], ("NEAR_UNIQUE", "WARNING", []), id="numbers of rows"),
        pytest.param([f"n{n}" for n in range(ROWS)], ("NEAR_UNIQUE", "WARNING", []), id="names"),
        pytest.param(
            ["1"] * 200 + ["2"] * 98 + ["many", "inf"],
            ("WRONG_TYPE", "ERROR", [299, 300]),
            id="NaN",
        ),
        pytest.param(
            ["2024-02-29"] * 298 + ["2024-02-30", "soon"],
            ("WRONG_TYPE", "ERROR", [299, 300]),
            id="no dates",
        ),
        pytest.param(
            [*RNG.normal(size=ROWS - 1), 1e6], ("OUT_OF_RANGE", "INFO", [300]), id="far away"
        ),
    ],
)
def test_columns(
    path: Path, column: list[Any], expected: tuple[str, str, list[int]] | None
) -> None:
    findings = report(path, table(**HONEST, odd=column))
    if expected is None:
        assert kinds(findings) == {("MISSING", "odd")}
        return
    kind, severity, rows = expected
    one = found(findings, kind)
    assert one.column == "odd"
    assert one.severity == pb.FindingSeverity.Value(f"FINDING_SEVERITY_{severity}")
    assert list(one.rows)[: len(rows)] == rows
    assert len(one.rows) <= 10


def test_figures_are_counted_over_all_rows(path: Path) -> None:
    one = found(report(path, table(**HONEST, odd=["", "1", "2"] * 100)), "MISSING")
    assert one.figures == {"count": 100, "share": pytest.approx(1 / 3)}
    assert list(one.rows) == list(range(1, 31, 3))


def test_values_outside_of_the_range_asked_for(path: Path) -> None:
    content = table(**HONEST, age=[30] * 298 + [-1, 200])
    one = found(report(path, content, ranges={"age": pb.Range(minimum=0)}), "OUT_OF_RANGE")
    assert (one.severity, list(one.rows)) == (pb.FINDING_SEVERITY_WARNING, [299])
    both = report(path, content, ranges={"age": pb.Range(minimum=0, maximum=150)})
    assert list(found(both, "OUT_OF_RANGE").rows) == [299, 300]


@pytest.mark.parametrize(
    ("kind", "severity", "rows"),
    [
        (["a"] * 280 + ["b"] * 20, "WARNING", [281, 282]),
        (["a"] * 298 + ["b"] * 2, "ERROR", [299, 300]),
    ],
)
def test_classes_of_very_different_size(
    path: Path, kind: list[str], severity: str, rows: list[int]
) -> None:
    one = found(report(path, table(**HONEST | {"kind": kind})), "CLASS_IMBALANCE")
    assert one.severity == pb.FindingSeverity.Value(f"FINDING_SEVERITY_{severity}")
    assert (one.column, list(one.rows)[:2]) == ("kind", rows)
    assert "'b'" in one.message


def test_a_target_that_teaches_nothing(path: Path) -> None:
    findings = report(path, table(**HONEST | {"kind": ["a"] * 299 + [""]}))
    assert found(findings, "CONSTANT").severity == pb.FINDING_SEVERITY_ERROR
    assert found(findings, "MISSING").severity == pb.FINDING_SEVERITY_ERROR


def test_rows_that_repeat_and_contradict_each_other(path: Path) -> None:
    repeated = {name: [*values, *values[:60]] for name, values in HONEST.items()}
    findings = report(path, table(**repeated))
    assert list(found(findings, "DUPLICATES").rows)[:2] == [301, 302]
    assert found(findings, "DUPLICATES").figures["count"] == 60
    across = found(findings, "DUPLICATES_ACROSS_SPLITS").figures
    assert 10 < across["count"] < 60
    torn = repeated | {"kind": HONEST["kind"] + ["a"] * 30 + ["b"] * 30}
    one = found(report(path, table(**torn)), "CONTRADICTIONS")
    torn_kinds = zip(torn["kind"][ROWS:], HONEST["kind"], strict=False)
    assert one.figures["count"] == 2 * sum(label != kind for label, kind in torn_kinds)


def test_rows_that_repeat_by_group_do_not_cross_the_split_by_group(path: Path) -> None:
    doubled = {name: [value for value in values for _ in "12"] for name, values in HONEST.items()}
    content = table(**doubled, who=[row // 2 for row in range(2 * ROWS)])
    assert ("DUPLICATES_ACROSS_SPLITS", "") in kinds(report(path, content, split_column="who"))
    by_group = report(path, content, split_method=pb.SPLIT_METHOD_GROUP, split_column="who")
    assert kinds(by_group) == {("DUPLICATES", "")}


@pytest.mark.parametrize(
    "leak",
    [
        pytest.param(lambda kind: "yes" if kind == "a" else "no", id="category"),
        pytest.param(lambda kind: RNG.normal() + (8 if kind == "a" else 0), id="number"),
        pytest.param(lambda kind: 1 if kind == "a" else "", id="missing"),
    ],
)
def test_a_column_that_tells_the_target(path: Path, leak: Any) -> None:
    told = [leak(kind) for kind in HONEST["kind"]]
    one = found(report(path, table(**HONEST, told=told)), "TARGET_LEAK")
    assert one.column == "told"
    assert one.figures["score"] > 0.97


def test_a_column_that_tells_a_number(path: Path) -> None:
    price = RNG.normal(size=ROWS)
    content = table(**HONEST, price=price, gross=price * 1.19, near=price + RNG.normal(size=ROWS))
    findings = report(path, content, target="price")
    assert found(findings, "TARGET_LEAK").column == "gross"


def test_names_do_not_tell_rows_they_were_not_seen_in(path: Path) -> None:
    content = table(**HONEST, name=[f"n{row}" for row in range(ROWS)])
    assert ("TARGET_LEAK", "name") not in kinds(report(path, content))


def test_a_test_before_the_training(path: Path) -> None:
    days = [f"2024-{1 + row // 28:02}-{1 + row % 28:02}" for row in range(ROWS)]
    one = found(report(path, table(**HONEST, day=days), split_column="day"), "TIME_LEAK")
    assert one.column == "day"
    assert one.figures["share"] > 0.9
    by_time = report(
        path,
        table(**HONEST, day=days),
        split_column="day",
        split_method=pb.SPLIT_METHOD_TIME,
    )
    assert ("TIME_LEAK", "day") not in kinds(by_time)


def test_a_file_with_nothing_but_a_target(path: Path) -> None:
    with pytest.raises(DatasetInvalidError) as error:
        report(path, b"kind\na\nb\n")
    assert error.value.metadata == {"problem": "MISSING_COLUMN", "column": "kind"}


def test_a_quantity_is_not_taken_for_classes(path: Path) -> None:
    content = table(**HONEST, price=[row % 97 * 3 for row in range(ROWS)])
    assert not report(path, content, target="price")


def test_declared_types_count(path: Path) -> None:
    content = table(**HONEST, zip=["01234", "99999", "x"] * 100)
    assert ("WRONG_TYPE", "zip") in kinds(report(path, content))
    text = {"zip": pb.COLUMN_TYPE_TEXT}
    assert not report(path, content, column_types=text)
    assert not report(path, content, declared=text)


def test_of_a_large_table_the_first_rows_are_judged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examined, "MOST_CELLS", 3 * 250)
    path.write_bytes(table(**HONEST))
    asked = Validation.parse(pb.ValidateDatasetRequest(name=NAME, target="kind"))
    assert validate(asked, pb.DATASET_FORMAT_CSV, path).row_count == 250


def test_images(path: Path) -> None:
    files = {f"{'ab'[n % 2]}/{n}.png": image(size=(2 + n % 3, 2), color=n) for n in range(60)}
    assert not report(path, as_zip(files), pb.DATASET_FORMAT_IMAGES, target="")
    again = {f"a/again{n}.png": files[f"b/{n}.png"] for n in (1, 3)}
    findings = report(path, as_zip(files | again), pb.DATASET_FORMAT_IMAGES, target="")
    assert kinds(findings) == {("CONTRADICTIONS", "")}
    assert list(findings[0].rows) == [2, 4, 61, 62]
    same = {f"{'ab'[n % 2]}/{n}.png": image() for n in range(40)}
    findings = report(path, as_zip(same), pb.DATASET_FORMAT_IMAGES, target="labels")
    assert ("CONSTANT", "images") in kinds(findings)


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"target": "x"}, "MISSING_COLUMN"),
        ({"features": ["x"]}, "MISSING_COLUMN"),
        ({"ranges": {"x": pb.Range()}}, "MISSING_COLUMN"),
        ({"column_types": {"x": 1}}, "MISSING_COLUMN"),
        ({"split_column": "color"}, "WRONG_TYPE"),
        ({"target": "size", "features": ["color"], "split_column": "kind"}, "WRONG_TYPE"),
    ],
)
def test_refuses_what_is_not_there(path: Path, asked: dict[str, Any], problem: str) -> None:
    with pytest.raises(DatasetInvalidError) as error:
        report(path, table(**HONEST), **asked)
    assert error.value.metadata["problem"] == problem


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"name": "x"}, "name"),
        ({"split_method": 9}, "split_method"),
        ({"split_method": 2}, "split_column"),
        ({"column_types": {"a": 0}}, "column_types[a]"),
        ({"features": ["kind"]}, "features"),
        ({"test_fraction": 0.7}, "test_fraction"),
    ],
)
def test_refuses_malformed_requests(asked: dict[str, Any], field: str) -> None:
    request = pb.ValidateDatasetRequest(**{"name": NAME, "target": "kind"} | asked)
    with pytest.raises(FieldInvalidError) as error:
        Validation.parse(request)
    assert error.value.metadata["field"] == field


@pytest.fixture
async def client(tmp_path: Path, command: Sequence[str]) -> AsyncIterator[Client]:
    async with running_trainer(tmp_path, command) as client:
        yield client


async def test_a_report_comes_over_the_wire_with_the_worst_first(client: Client) -> None:
    content = table(**HONEST | {"kind": ["a"] * 298 + ["b"] * 2}, odd=["", "1", "2"] * 100)
    dataset = await client.upload(content)
    request = pb.ValidateDatasetRequest(name=dataset.name, target="kind")
    response = await client.datasets.ValidateDataset(request)
    assert response.row_count == ROWS
    severities = [finding.severity for finding in response.findings]
    assert severities == [pb.FINDING_SEVERITY_ERROR, pb.FINDING_SEVERITY_INFO]


async def test_a_report_needs_a_dataset_and_the_right_to_see_it(client: Client) -> None:
    request = pb.ValidateDatasetRequest(name=NAME)
    error = await failure(client.datasets.ValidateDataset(request))
    assert error.code is grpc.StatusCode.NOT_FOUND
    denied = client.key(infer=["*"])
    call = denied.datasets.ValidateDataset(request, metadata=denied.metadata)
    assert (await failure(call)).reason == "ERROR_REASON_PERMISSION_DENIED"
