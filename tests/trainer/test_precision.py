"""Steps in mixed precision: 16-bit floats inside, 32-bit ones in all that is kept and answered."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.hyperparameters import Training
from servery_trainer.keras_framework.criteria import criterion
from servery_trainer.keras_framework.framework import Keras
from servery_trainer.keras_framework.learner import KerasLearner
from servery_trainer.networks import Dense
from servery_trainer.objectives import CrossEntropy
from servery_trainer.spec import parse_spec
from tests.trainer.specs import image

MIXED = pb.PRECISION_MIXED_FLOAT16
FIELD = "training_job.spec.training.precision"
DIGITS = load_digits()
PIXELS = (DIGITS.data / 16).astype(np.float32)
OBJECTIVE = CrossEntropy(np.ones(10, np.float32))


def build(precision: pb.Precision.ValueType) -> tuple[Any, KerasLearner]:
    """Return a network, alike each time, and what fits it, though there may be no GPU."""
    settings = Training.parse(pb.Training(precision=precision, max_gradient_norm=1), "")
    network = Keras().build(Dense(hidden_units=(32,), dropout=0.1), (64,), 10, 0, 1)
    return network, KerasLearner(network, criterion(OBJECTIVE), settings, DIGITS.target)


def learn(learner: KerasLearner, *steps: int) -> None:
    for step in steps:
        rows = slice(32 * step, 32 * (step + 1))
        learner.learn(PIXELS[rows], DIGITS.target[rows])


def multiplied_in(learner: KerasLearner) -> set[str]:
    graph = learner._learn.get_concrete_function().graph  # type: ignore[attr-defined]
    return {op.outputs[0].dtype.name for op in graph.get_operations() if op.type == "MatMul"}


def test_only_products_of_steps_are_in_halves() -> None:
    losses = {}
    for precision in (pb.PRECISION_FLOAT32, MIXED):
        network, learner = build(precision)
        learn(learner, *range(40))
        losses[precision], _ = learner.judge(PIXELS[1500:], DIGITS.target[1500:])
        assert multiplied_in(learner) == {"float16" if precision == MIXED else "float32"}
        assert {weights.dtype for weights in network.get_weights()} == {np.dtype(np.float32)}
        assert network(PIXELS[:2]).dtype == tf.float32
    assert losses[MIXED] != losses[pb.PRECISION_FLOAT32]
    assert losses[MIXED] == pytest.approx(losses[pb.PRECISION_FLOAT32], rel=0.02)


def test_a_restart_changes_nothing() -> None:
    whole, learner = build(MIXED)
    learn(learner, *range(6))
    _, first = build(MIXED)
    learn(first, *range(3))
    resumed, second = build(MIXED)
    second.restore(first.state())
    learn(second, *range(3, 6))
    for one, other in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_before_the_first_step() -> None:
    settings = Training.parse(pb.Training(precision=MIXED), "")
    network, _ = build(MIXED)
    with pytest.raises(FieldInvalidError) as caught:
        Keras().learner(network, OBJECTIVE, settings, DIGITS.target)
    assert caught.value.metadata["field"] == FIELD


@pytest.mark.parametrize(
    ("framework", "precision"), [(pb.FRAMEWORK_PYTORCH, MIXED), (pb.FRAMEWORK_KERAS, 9)]
)
def test_what_no_framework_does_is_refused(framework: Any, precision: Any) -> None:
    spec = image()
    spec.framework = framework
    spec.training.precision = precision
    with pytest.raises(FieldInvalidError) as caught:
        parse_spec(spec)
    assert caught.value.metadata["field"] == FIELD
