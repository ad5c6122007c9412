"""Step sizes over time, and weights of classes."""

from typing import Any

import numpy as np
import pytest

from servery.trainer.v1 import training_pb2 as pb
from servery_trainer.hyperparameters import Training
from servery_trainer.schedules import class_weights, is_constant, learning_rate

COSINE, LINEAR = pb.LEARNING_RATE_SCHEDULE_COSINE, pb.LEARNING_RATE_SCHEDULE_LINEAR


def settings(**fields: Any) -> Training:
    return Training.parse(pb.Training(max_epochs=10, learning_rate=0.8, **fields), "t")


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        pytest.param({}, [0.8] * 5, id="constant"),
        pytest.param({"schedule": LINEAR}, [0.8, 0.6, 0.4, 0.2, 0.02], id="linear"),
        pytest.param(
            {"schedule": COSINE},
            [0.8, 0.4 + 0.4 * 0.5**0.5, 0.4, 0.4 - 0.4 * 0.5**0.5, 0.4 * (1 - np.cos(np.pi / 40))],
            id="cosine",
        ),
        pytest.param({"warmup_epochs": 5}, [0.8 / 21, 0.8 * 11 / 21, 0.8, 0.8, 0.8], id="warm-up"),
        pytest.param(
            {"warmup_epochs": 5, "schedule": LINEAR},
            [0.8 / 21, 0.8 * 11 / 21, 0.8, 0.4, 0.04],
            id="warm-up, then linear",
        ),
    ],
)
def test_step_sizes(fields: dict[str, Any], sizes: list[float]) -> None:
    got = [learning_rate(settings(**fields), step, 4) for step in (0, 10, 20, 30, 39)]
    assert got == pytest.approx(sizes)


def test_only_without_schedule_and_warm_up_all_steps_are_alike() -> None:
    assert is_constant(settings())
    assert not is_constant(settings(warmup_epochs=1))
    assert not is_constant(settings(schedule=COSINE))


def test_balanced_classes_weigh_alike_in_total() -> None:
    codes = np.array([0] * 90 + [1] * 9 + [2])
    weights = class_weights(settings(class_weights=pb.CLASS_WEIGHTS_BALANCED), codes, 3)
    np.testing.assert_allclose(weights * np.bincount(codes), [100 / 3] * 3, rtol=1e-6)
    assert weights[codes].mean() == pytest.approx(1)
    np.testing.assert_array_equal(class_weights(settings(), codes, 3), np.ones(3))
