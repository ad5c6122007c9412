"""What the lineage of a version says of the data it learned from."""

from pathlib import Path
from typing import Any

import pytest

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.data_report import data_report
from servery_trainer.spec import parse_spec
from tests.trainer.specs import table, tabular, text

ROWS = [f"{n},1,{'word ' * (n % 5)}end,{'ab'[n % 2]},{n % 3 > 0:d}" for n in range(60)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["number,same,words,kind,wet", *ROWS, *ROWS[:3]]))
    return path


def kinds(spec: pb.TrainingSpec, file: Path) -> set[tuple[str, str]]:
    found: list[dict[str, Any]] = data_report(parse_spec(spec), file)
    return {(one["kind"].removeprefix("FINDING_KIND_"), one.get("column", "")) for one in found}


def test_columns_that_are_learned_from_are_reported_on(file: Path) -> None:
    whole = kinds(tabular(), file)
    assert {("CONSTANT", "same"), ("DUPLICATES", "")} <= whole
    assert not {column for _, column in kinds(tabular(features=["wet"]), file)} - {"", "wet"}


def test_labels_and_texts_are_reported_on_too(file: Path) -> None:
    assert ("CONSTANT", "same") in kinds(table("tabular_multi_label", targets=["wet"]), file)
    found = kinds(text(text="words"), file)
    assert found
    assert not {column for _, column in found} - {"", "words", "kind"}


def test_data_that_training_refuses_and_other_tasks_are_not(file: Path) -> None:
    assert not data_report(parse_spec(tabular(target="nothing")), file)
    assert not data_report(parse_spec(table("recommendation", user="kind", item="words")), file)
