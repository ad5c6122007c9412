"""What runs are thought to cost, after what was measured."""

import pytest

from servery_inference.costs import Costs

MS = 1e-3


def test_nothing_known_costs_nothing() -> None:
    assert Costs(0).estimate(1000) == 0


def test_one_slow_run_says_little() -> None:
    costs = Costs.of(0, [(1000, 0.1 * MS)] * 3)
    costs.record(1000, 500 * MS)
    assert costs.is_short(1000)
    assert costs.estimate(1000) == pytest.approx(0.11 * MS)


def test_slow_runs_are_believed_in_the_end() -> None:
    costs = Costs.of(1 << 20, [(1000, 0.1 * MS)])
    for _ in range(100):
        costs.record(1000, 50 * MS)
    assert not costs.is_short(1000)
    assert costs.estimate(1000) == pytest.approx(50 * MS)


def test_the_mean_is_expected_and_the_least_is_certain() -> None:
    costs = Costs.of(0, [(1000, 1 * MS)])
    for _ in range(100):
        costs.record(1000, 1 * MS)
        costs.record(1000, 2 * MS)
    assert costs.estimate(1000) < 1.3 * MS
    assert costs.expected(1000) == pytest.approx(1.5 * MS, rel=0.1)
    assert costs.share(500) == pytest.approx(costs.expected(1000) / 2)
    costs.record(1000, 500 * MS)
    assert costs.expected(1000) < 2.5 * MS


def test_larger_inputs_take_no_less_and_smaller_ones_are_not_known() -> None:
    costs = Costs.of(0, [(1000, 4 * MS)])
    assert 0 < costs.estimate(1 << 20) <= 4 * MS
    assert costs.estimate(10) == 0


@pytest.mark.parametrize(
    ("together_ms", "pays"), [(1.1, True), (3.9, False), (None, True)], ids=["yes", "no", "unknown"]
)
def test_joining_pays_if_a_batch_costs_less_by_element(
    together_ms: float | None, pays: bool
) -> None:
    costs = Costs.of(0, [(100, 1 * MS)])
    if together_ms:
        costs.record(400, together_ms * MS)
    assert costs.joining_pays(100, 400) is pays
