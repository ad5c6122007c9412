"""Columns of text, truth and dates become the same features in the graph as in NumPy."""

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servery.trainer.v1 import dataset_pb2
from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.data_errors import DatasetInvalidError, Problem
from servery_trainer.encoders import CategoryEncoder, DateEncoder
from servery_trainer.fitting import fit_columns
from servery_trainer.imputation import Imputation
from servery_trainer.tasks import Fill
from tests.trainer.test_preprocessing import load_graph, run_graph

TYPES = {
    "age": dataset_pb2.COLUMN_TYPE_NUMERIC,
    "colour": dataset_pb2.COLUMN_TYPE_TEXT,
    "member": dataset_pb2.COLUMN_TYPE_BOOLEAN,
    "since": dataset_pb2.COLUMN_TYPE_DATE,
}
POLICIES = [
    pb.MISSING_POLICY_REFUSE,
    pb.MISSING_POLICY_IMPUTE_MEDIAN,
    pb.MISSING_POLICY_IMPUTE_MODE,
    pb.MISSING_POLICY_IMPUTE_CONSTANT,
]

FIRST = datetime(1000, 1, 1, tzinfo=UTC)

DATES = (
    st.integers(0, 730_000 * 86_400)
    .map(lambda s: FIRST + timedelta(seconds=s))
    .flatmap(
        lambda date: st.sampled_from(["%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M"]).map(
            date.strftime
        )
    )
)
TEXTS = st.one_of(st.sampled_from(["red", "blue", "", " red", "RED"]), st.text(max_size=20))
LONG = st.sampled_from([20_000, 100_000]).map(lambda length: "red" * length)
ROWS = st.fixed_dictionaries(
    {
        "age": st.floats(width=32),
        "colour": TEXTS | LONG,
        "member": st.sampled_from(["true", "false", "True", "FALSE", "", "yes", "tRUE"]) | TEXTS,
        "since": DATES | TEXTS | LONG | st.sampled_from(["2024-02-30", "2024-13-01", "2024-1-1"]),
    }
)


def texts(*values: str) -> Any:
    return np.array([[value] for value in values], np.object_)


def table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    columns = {name: [[row[name]] for row in rows] for name in TYPES}
    return {
        name: np.array(values, np.float32 if name == "age" else np.object_)
        for name, values in columns.items()
    }


TRAIN = table(
    [
        {"age": 3, "colour": "red", "member": "true", "since": "2020-02-29"},
        {"age": 4, "colour": "red", "member": "false", "since": "2021-12-31T23:59:59"},
        {"age": 4, "colour": "blue", "member": "true", "since": "1999-01-01 00:00"},
        {"age": 9, "colour": "blue", "member": "true", "since": "2020-02-29"},
        {"age": 9, "colour": "once", "member": "true", "since": "2020-02-29"},
    ]
)


@cache
def fitted(policy: Any) -> Any:
    preprocessing = fit_columns(TYPES, TRAIN, Imputation.of(policy, Fill()))
    return preprocessing, load_graph(preprocessing)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40, deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=5))
def test_a_mixed_table_comes_out_equal_bit_for_bit(policy: Any, rows: list[Any]) -> None:
    served = table(rows)
    preprocessing, graph = fitted(policy)
    np.testing.assert_array_equal(graph.run(None, served)[0], preprocessing.apply(served))


def test_rare_and_unseen_values_share_a_bucket_that_was_trained() -> None:
    encoder = CategoryEncoder.fit("c", texts("a", "a", "b", "b", "b", "rare")[:, 0], None)
    assert encoder.vocabulary == ("b", "a")
    np.testing.assert_array_equal(
        run_graph(encoder, {"c": texts("b", "a", "rare", "unseen", "", "B")}),
        [[0, 1, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]],
    )


def test_no_feature_stands_for_what_no_training_row_had() -> None:
    encoder = CategoryEncoder.fit("c", texts("a", "a", "b", "b")[:, 0], None)
    np.testing.assert_array_equal(run_graph(encoder, {"c": texts("unseen", "a")}), [[0, 0], [1, 0]])


def test_a_column_of_names_that_occur_once_is_one_constant() -> None:
    encoder = CategoryEncoder.fit("c", texts("a", "b", "c")[:, 0], None)
    np.testing.assert_array_equal(run_graph(encoder, {"c": texts("a", "z")}), [[1], [1]])


def test_true_is_true_in_the_spellings_of_python_sql_and_json() -> None:
    encoder = CategoryEncoder.fit_booleans("c", texts("true", "false")[:, 0], None)
    np.testing.assert_array_equal(
        run_graph(encoder, {"c": texts("true", "TRUE", "True", "false", "0", "")}),
        [[1, 0]] * 3 + [[0, 1], [0, 0], [0, 0]],
    )


@pytest.mark.parametrize(
    ("policy", "age", "colour", "member", "since"),
    [
        (pb.MISSING_POLICY_IMPUTE_MEDIAN, 4, "blue", "true", "2020-02-29"),
        (pb.MISSING_POLICY_IMPUTE_MODE, 4, "blue", "true", "2020-02-29"),
        (pb.MISSING_POLICY_IMPUTE_CONSTANT, 7, "red", "false", "1970-01-01"),
    ],
)
def test_a_missing_value_counts_as_what_the_policy_puts_in(
    policy: Any, age: float, colour: str, member: str, since: str
) -> None:
    imputation = Imputation.of(policy, Fill(number=7, text="red"))
    preprocessing = fit_columns(TYPES, TRAIN, imputation)
    empty = table([{"age": np.nan, "colour": "", "member": "", "since": ""}])
    full = table([{"age": age, "colour": colour, "member": member, "since": since}])
    np.testing.assert_array_equal(run_graph(preprocessing, empty), preprocessing.apply(full))


def test_missing_can_be_a_category_of_its_own() -> None:
    imputation = Imputation.of(pb.MISSING_POLICY_IMPUTE_CONSTANT, Fill())
    assert imputation
    encoder = CategoryEncoder.fit("c", texts("a", "a", "", "")[:, 0], imputation.category)
    assert encoder.vocabulary == ("a", "missing")
    np.testing.assert_array_equal(run_graph(encoder, {"c": texts("", "a")}), [[0, 1], [1, 0]])


@settings(max_examples=100, deadline=None)
@given(date=st.integers(0, 730_000 * 86_400).map(lambda s: FIRST + timedelta(seconds=s)))
def test_time_is_that_of_the_calendar(date: datetime) -> None:
    encoder = DateEncoder(column="d", fill=None, mean_s=0, deviation_s=np.float32(1))
    time, *circles = encoder.apply({"d": texts(f"{date:%Y-%m-%d %H:%M:%S}")})[0]
    (zero,) = encoder.apply({"d": texts("1000-01-01")})[:, 0]
    assert time - zero == pytest.approx((date - FIRST) / timedelta(seconds=1), rel=1e-6, abs=9e3)
    week, year = 2 * np.pi * date.weekday() / 7, 2 * np.pi * (date.month - 1) / 12
    expected = [np.sin(week), np.cos(week), np.sin(year), np.cos(year)]
    np.testing.assert_allclose(circles, expected, atol=1e-6)


def test_refuses_to_impute_a_column_without_values() -> None:
    imputation = Imputation.of(pb.MISSING_POLICY_IMPUTE_MODE, Fill())
    for name in TYPES:
        empty: Any = {name: np.full((2, 1), np.nan, np.float32)}
        if name != "age":
            empty = {name: texts("", "")}
        with pytest.raises(DatasetInvalidError) as refused:
            fit_columns(TYPES, empty, imputation)
        assert refused.value.problem == Problem.MISSING_VALUE
        assert refused.value.metadata["column"] == name
