"""How to train and what to publish is parsed whole or refused by field."""

import math

import pytest

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.hyperparameters import Optimization, Training


def test_fills_in_the_defaults_of_each_optimizer() -> None:
    adam, adamw, sgd = (
        Training.parse(pb.Training(optimizer=optimizer), "t")
        for optimizer in (pb.OPTIMIZER_UNSPECIFIED, pb.OPTIMIZER_ADAMW, pb.OPTIMIZER_SGD)
    )
    assert (adam.optimizer, adam.learning_rate) == (pb.OPTIMIZER_ADAM, 0.001)
    assert (adam.momentum, adam.weight_decay) == (None, None)
    assert (adamw.learning_rate, adamw.weight_decay) == (0.001, 0.004)
    assert (sgd.learning_rate, sgd.momentum) == (0.01, 0.9)
    assert (adam.l2, adam.max_gradient_norm, adam.warmup_epochs) == (0, 0, 0)
    assert adam.class_weights == pb.CLASS_WEIGHTS_EQUAL
    assert adam.schedule == pb.LEARNING_RATE_SCHEDULE_CONSTANT


def test_keeps_to_accuracy_unless_asked_otherwise() -> None:
    kept = Optimization.parse(pb.Optimization(), "o")
    assert kept == Optimization(
        objective=pb.OBJECTIVE_ACCURACY, max_accuracy_drop=0.01, max_latency_us=0
    )
    assert Optimization.parse(pb.Optimization(max_accuracy_drop=0), "o").max_accuracy_drop == 0


@pytest.mark.parametrize(
    "message",
    [
        pb.Training(),
        pb.Training(optimizer=pb.OPTIMIZER_SGD, momentum=0, warmup_epochs=3, l2=1e-4),
        pb.Training(optimizer=pb.OPTIMIZER_ADAMW, max_gradient_norm=1),
    ],
)
def test_training_survives_being_written_out(message: pb.Training) -> None:
    parsed = Training.parse(message, "t")
    assert Training.parse(parsed.to_proto(), "t") == parsed


@pytest.mark.parametrize(
    ("field", "training"),
    [
        ("optimizer", pb.Training(optimizer=9)),  # type: ignore[arg-type]
        ("schedule", pb.Training(schedule=9)),  # type: ignore[arg-type]
        ("class_weights", pb.Training(class_weights=9)),  # type: ignore[arg-type]
        ("momentum", pb.Training(momentum=0.9)),
        ("momentum", pb.Training(optimizer=pb.OPTIMIZER_SGD, momentum=1)),
        ("momentum", pb.Training(optimizer=pb.OPTIMIZER_SGD, momentum=math.nan)),
        ("weight_decay", pb.Training(optimizer=pb.OPTIMIZER_SGD, weight_decay=0.1)),
        ("weight_decay", pb.Training(optimizer=pb.OPTIMIZER_ADAMW, weight_decay=1.1)),
        ("warmup_epochs", pb.Training(max_epochs=3, warmup_epochs=3)),
        ("warmup_epochs", pb.Training(warmup_epochs=-1)),
        ("l2", pb.Training(l2=math.nan)),
        ("l2", pb.Training(l2=-1)),
        ("max_gradient_norm", pb.Training(max_gradient_norm=math.inf)),
    ],
)
def test_names_the_field_of_training_that_is_wrong(field: str, training: pb.Training) -> None:
    with pytest.raises(FieldInvalidError) as refused:
        Training.parse(training, "t")
    assert refused.value.metadata["field"] == f"t.{field}"


@pytest.mark.parametrize(
    ("field", "optimization"),
    [
        ("objective", pb.Optimization(objective=9)),  # type: ignore[arg-type]
        ("max_accuracy_drop", pb.Optimization(max_accuracy_drop=1.1)),
        ("max_accuracy_drop", pb.Optimization(max_accuracy_drop=math.nan)),
        ("max_latency_us", pb.Optimization(max_latency_us=-1)),
        ("max_latency_us", pb.Optimization(max_latency_us=math.inf)),
    ],
)
def test_names_the_field_of_optimization_that_is_wrong(
    field: str, optimization: pb.Optimization
) -> None:
    with pytest.raises(FieldInvalidError) as refused:
        Optimization.parse(optimization, "o")
    assert refused.value.metadata["field"] == f"o.{field}"
