"""Ranking and honesty of probabilities, against scikit-learn and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from servery_trainer import scores


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=60).filter(
        lambda rows: len({positive for _, positive in rows}) == 2
    )
)
def test_areas_are_those_of_scikit_learn_ties_included(rows: list[tuple[int, bool]]) -> None:
    values = np.array([score / 5 for score, _ in rows], np.float32)
    truth = np.array([positive for _, positive in rows])
    assert scores.roc_auc(values, truth) == pytest.approx(metrics.roc_auc_score(truth, values))
    assert scores.average_precision(values, truth) == pytest.approx(
        metrics.average_precision_score(truth, values)
    )
    false_rate, true_rate, _ = metrics.roc_curve(truth, values, drop_intermediate=False)
    got = scores.roc_curve(values, truth)
    np.testing.assert_allclose(got[0], false_rate)
    np.testing.assert_allclose(got[1], true_rate)


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.3, 0.7]] * 2)
    codes = np.array([0, 0, 0, 1, 1, 1])
    # four rows are 0.9 sure and 3 of 4 right; two are 0.7 sure and right
    assert scores.calibration_error(probabilities, codes) == pytest.approx(
        4 / 6 * 0.15 + 2 / 6 * 0.3
    )
    counts, sure, right = scores.reliability(probabilities, codes)
    assert counts.tolist() == [2, 4]
    assert sure == pytest.approx([0.7, 0.9])
    assert right == pytest.approx([1, 0.75])


def test_honest_probabilities_have_a_small_calibration_error() -> None:
    rng = np.random.default_rng(2)
    probabilities = rng.dirichlet([1, 1, 1], 20_000)
    codes = (rng.random(20_000)[:, None] > probabilities.cumsum(axis=1)).sum(axis=1)
    assert scores.calibration_error(probabilities, codes) < 0.015
    assert scores.calibration_error(probabilities, np.roll(codes, 1)) > 0.2


def test_many_rows_are_drawn_in_blocks() -> None:
    rows = np.random.default_rng(1).random(30_000)
    lower, upper = scores.bootstrap({"x": rows}, {"mean": lambda draws: draws["x"].mean(axis=1)})[
        "mean"
    ]
    assert lower < rows.mean() < upper
    assert upper - lower == pytest.approx(2 * 1.96 * rows.std() / 30_000**0.5, rel=0.1)
