"""How rows are divided."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from servery_trainer.split import MIN_ROWS_PER_CLASS, Split, split_rows


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
