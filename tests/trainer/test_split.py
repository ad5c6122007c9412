"""How rows are divided."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servery.trainer.v1 import dataset_pb2, training_pb2
from servery_rpc.errors import FieldInvalidError
from servery_trainer.data_errors import DatasetInvalidError
from servery_trainer.split import MIN_ROWS_PER_CLASS, Split, SplitPolicy, split_rows

GROUP, TIME = dataset_pb2.SPLIT_METHOD_GROUP, dataset_pb2.SPLIT_METHOD_TIME


def split(
    counts: list[int], *, validation: float = 0.15, test: float = 0.15, seed: int = 0
) -> Split:
    codes = np.repeat(np.arange(len(counts)), counts)
    return split_rows(codes, validation_fraction=validation, test_fraction=test, seed=seed)


@given(
    counts=st.lists(st.integers(MIN_ROWS_PER_CLASS, 60), min_size=2, max_size=6),
    validation=st.floats(0.001, 0.5),
    test=st.floats(0.001, 0.499),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_row_is_in_one_part_and_each_class_in_every_part(
    counts: list[int], validation: float, test: float, seed: int
) -> None:
    codes = np.repeat(np.arange(len(counts)), counts)
    parts = split(counts, validation=validation, test=test, seed=seed)
    everything = np.concatenate([parts.train, parts.validation, parts.test])
    np.testing.assert_array_equal(np.sort(everything), np.arange(len(codes)))
    for part in (parts.train, parts.validation, parts.test):
        assert len(np.unique(codes[part])) == len(counts)


def test_each_class_is_divided_in_the_same_proportion() -> None:
    parts = split([100, 1000], validation=0.2, test=0.1)
    for part, expected in (
        (parts.train, [70, 700]),
        (parts.validation, [20, 200]),
        (parts.test, [10, 100]),
    ):
        assert [np.sum(part < 100), np.sum(part >= 100)] == expected


def test_the_seed_decides() -> None:
    first, again, other = split([50, 50]), split([50, 50]), split([50, 50], seed=1)
    np.testing.assert_array_equal(first.test, again.test)
    assert not np.array_equal(first.test, other.test)


def divide(method: Any, keys: list[str], strata: list[int] | None = None, **policy: Any) -> Split:
    return SplitPolicy(method=method, column="key", **policy).divide(
        np.zeros(len(keys), np.int64) if strata is None else np.array(strata),
        np.array(keys, np.object_),
        np.arange(1, len(keys) + 1),
        seed=0,
    )


def parts_of(parts: Split) -> tuple[set[int], set[int], set[int]]:
    train, validation, test = (
        set(part.tolist()) for part in (parts.train, parts.validation, parts.test)
    )
    return train, validation, test


@settings(deadline=None)
@given(
    keys=st.lists(st.integers(0, 12).map(str), min_size=3, max_size=200).filter(
        lambda keys: len(set(keys)) >= 3
    ),
    validation=st.floats(0.001, 0.5),
    test=st.floats(0.001, 0.499),
    seed=st.integers(0, 2**32 - 1),
    method=st.sampled_from([GROUP, TIME]),
)
def test_rows_of_one_key_stay_together_and_no_part_is_empty(
    keys: list[str], validation: float, test: float, seed: int, method: Any
) -> None:
    parts = parts_of(
        divide(method, keys, validation_fraction=validation, test_fraction=test, seed=seed)
    )
    assert all(parts)
    assert sorted(row for part in parts for row in part) == list(range(len(keys)))
    held = [{keys[row] for row in part} for part in parts]
    assert not held[0] & held[1] | held[1] & held[2] | held[0] & held[2]
    if method == TIME:
        latest = [max(map(int, times)) for times in held]
        assert latest[0] < min(map(int, held[1]))
        assert latest[1] < min(map(int, held[2]))


@pytest.mark.parametrize("method", [GROUP, TIME])
def test_parts_have_about_the_rows_asked_for(method: Any) -> None:
    keys = [str(row // 5) for row in range(1000)]
    parts = divide(method, keys, validation_fraction=0.1, test_fraction=0.2)
    assert [len(part) for part in parts_of(parts)] == pytest.approx([700, 100, 200], abs=10)


def test_groups_are_drawn_by_the_seed() -> None:
    keys = [str(row % 20) for row in range(100)]
    first, again, other = (parts_of(divide(GROUP, keys, seed=seed)) for seed in (3, 3, 4))
    assert first == again != other


def test_times_may_be_dates() -> None:
    keys = ["2024-03-01", "2023-12-31 23:59", "2024-02-29", "2024-02-29T00:00:01", "1999-01-01"]
    parts = parts_of(divide(TIME, keys, validation_fraction=0.2, test_fraction=0.2))
    assert parts == ({4, 1, 2}, {3}, {0})


@pytest.mark.parametrize(
    ("method", "keys", "strata", "found"),
    [
        pytest.param(GROUP, ["a", "", "b", "c"], None, ("MISSING_VALUE", "2"), id="missing"),
        pytest.param(GROUP, ["a", "b", "b"], None, ("TOO_FEW_ROWS", None), id="two groups"),
        pytest.param(TIME, ["1", "1", "2"], None, ("TOO_FEW_ROWS", None), id="two times"),
        pytest.param(TIME, ["1", "2", "soon"], None, ("WRONG_TYPE", "3"), id="no number"),
        pytest.param(TIME, ["2024-01-01", "2024-01-02", "7"], None, ("WRONG_TYPE", "3"), id="mix"),
        pytest.param(TIME, ["1", "2", "nan"], None, ("WRONG_TYPE", "3"), id="NaN"),
        pytest.param(
            TIME, [*"123456789"], [*[0] * 8, 1], ("RARE_CLASS", "9"), id="class only in the test"
        ),
    ],
)
def test_refuses_columns_that_cannot_divide(
    method: Any, keys: list[str], strata: list[int] | None, found: tuple[str, str | None]
) -> None:
    with pytest.raises(DatasetInvalidError) as error:
        divide(method, keys, strata)
    metadata = error.value.metadata
    assert (metadata["problem"], metadata.get("row"), metadata["column"]) == (*found, "key")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"method": 9}, "s.method"),
        ({"method": GROUP}, "s.column"),
        ({"column": "c"}, "s.column"),
        ({"validation_fraction": 0.0}, "s.validation_fraction"),
        ({"test_fraction": float("nan")}, "s.test_fraction"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "s.test_fraction"),
    ],
)
def test_refuses_malformed_policies(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldInvalidError) as error:
        SplitPolicy.parse(training_pb2.Split(**fields), "s")
    assert error.value.metadata["field"] == field


def test_a_policy_survives_its_message() -> None:
    for policy in (
        SplitPolicy(),
        SplitPolicy(method=GROUP, column="c", seed=0, test_fraction=0.3, validation_fraction=0.2),
    ):
        assert SplitPolicy.parse(policy.to_proto(), "s") == policy
