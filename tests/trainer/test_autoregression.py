"""The linear forecast: it finds what is linear, and takes nothing from how a series is measured."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from servery_trainer import autoregression

WINDOW, HORIZON = 8, 3
TURN = 2 * np.cos(2 * np.pi / 10)


def windows(series: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    whole = sliding_window_view(series.astype(np.float32), WINDOW + HORIZON)
    return whole[:, :WINDOW], whole[:, WINDOW:]


def swinging(noise: float, steps: int = 600) -> NDArray[np.float64]:
    """A wave of 10 steps that noise moves on: an autoregressive process of order 2."""
    series = [0.0, 1.0]
    for shock in np.random.default_rng(2).normal(0, noise, steps):
        series.append(TURN * series[-1] - series[-2] + shock)
    return np.array(series)


def test_what_is_linear_is_forecast_to_the_digit() -> None:
    past, ahead = windows(swinging(noise=0))
    linear = autoregression.fit(past, ahead)
    assert linear.shape == (WINDOW, HORIZON)
    np.testing.assert_allclose(past @ linear, ahead, atol=1e-3)


def test_a_noisy_wave_is_forecast_almost_as_well_as_by_its_own_law() -> None:
    past, ahead = windows(swinging(noise=1))
    linear = autoregression.fit(past[:300], ahead[:300])
    later, truth = past[311:], ahead[311:, 0]
    errors = np.abs(later @ linear[:, 0] - truth).mean()
    assert errors < 1.2 * np.abs(TURN * later[:, -1] - later[:, -2] - truth).mean()


def test_noise_is_not_learned() -> None:
    """Of a random walk the last step says all there is to say."""
    past, ahead = windows(np.random.default_rng(3).normal(0, 1, 120).cumsum())
    linear = autoregression.fit(past[:40], ahead[:40])
    naive = np.abs(past[51:, -1:] - ahead[51:]).mean()
    assert np.abs(past[51:] @ linear - ahead[51:]).mean() < 1.1 * naive


@pytest.mark.parametrize(("unit", "origin"), [(1000, 0), (1, 50), (-0.01, -3)])
def test_unit_and_origin_change_nothing(unit: float, origin: float) -> None:
    past, ahead = windows(swinging(noise=1))
    linear = autoregression.fit(past, ahead)
    np.testing.assert_allclose(linear.sum(axis=0), 1, atol=1e-5)
    moved = autoregression.fit(past * unit + origin, ahead * unit + origin)
    np.testing.assert_allclose(moved, linear, atol=2e-3)


def test_a_series_that_stood_still_is_expected_to_stay() -> None:
    past, ahead = np.full((5, WINDOW), 7, np.float32), np.full((5, HORIZON), 7, np.float32)
    linear = autoregression.fit(past, ahead)
    np.testing.assert_array_equal(linear, [*[[0] * HORIZON] * (WINDOW - 1), [1] * HORIZON])


def test_a_window_may_have_one_step_and_there_may_be_one_window() -> None:
    linear = autoregression.fit(np.ones((1, 1), np.float32), np.ones((1, 2), np.float32))
    np.testing.assert_array_equal(linear, [[1, 1]])
    few = autoregression.fit(*(part[:1] for part in windows(swinging(noise=1))))
    assert np.isfinite(few).all()
