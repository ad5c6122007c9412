"""How a network is fitted and which graph of it is published, parsed."""

from dataclasses import dataclass
from typing import Final, Literal, Self

from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import FieldInvalidError
from servery_trainer.fields import between, count, finite, known

BATCH_SIZE: Final = 32
"""Rows per step by default."""

MAX_NETWORKS: Final = 20
"""Of an ensemble."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How networks are fitted; the fields are those of the message of the same name.

    Its `members` are in `Spec`: which fit depends on the task.
    """

    max_epochs: int
    batch_size: int
    learning_rate: float
    early_stopping_patience: int
    seed: int
    optimizer: pb.Optimizer.ValueType = pb.OPTIMIZER_ADAM
    momentum: float | None = None
    """Of SGD, else None."""
    weight_decay: float | None = None
    """Of ADAMW, else None."""
    schedule: pb.LearningRateSchedule.ValueType = pb.LEARNING_RATE_SCHEDULE_CONSTANT
    warmup_epochs: int = 0
    l2: float = 0.0
    max_gradient_norm: float = 0.0
    """0: no limit."""
    class_weights: pb.ClassWeights.ValueType = pb.CLASS_WEIGHTS_EQUAL
    ensemble_size: int = 1
    """Networks of each family."""
    combination: pb.Combination.ValueType = pb.COMBINATION_MEAN
    precision: pb.Precision.ValueType = pb.PRECISION_FLOAT32

    @classmethod
    def parse(cls, training: pb.Training, path: str, batch_size: int = BATCH_SIZE) -> Self:
        """Parse what a caller asks for.

        Args:
            training: What they said.
            path: Of this message, to name fields by.
            batch_size: What it is if they do not say.

        Raises:
            FieldInvalidError: A value is out of its range, or does not belong to the optimizer.
        """
        optimizer = pb.Optimizer.ValueType(
            known(training.optimizer, pb.Optimizer, f"{path}.optimizer")
        )
        default = 0.01 if optimizer == pb.OPTIMIZER_SGD else 0.001
        rate = training.learning_rate if training.HasField("learning_rate") else default
        if not 0 < rate <= 1:
            raise FieldInvalidError(f"{path}.learning_rate", rate, "be over 0 and at most 1")
        epochs = count(training.max_epochs, 40, 10_000, f"{path}.max_epochs")
        if not 0 <= training.warmup_epochs < epochs:
            rule = f"be 0 to {epochs - 1}, below max_epochs"
            raise FieldInvalidError(f"{path}.warmup_epochs", training.warmup_epochs, rule)
        momentum = _of(training, "momentum", 0.9, optimizer == pb.OPTIMIZER_SGD, path)
        if momentum == 1:
            raise FieldInvalidError(f"{path}.momentum", momentum, "be below 1")
        return cls(
            max_epochs=epochs,
            batch_size=count(training.batch_size, batch_size, 65_536, f"{path}.batch_size"),
            learning_rate=rate,
            early_stopping_patience=count(
                training.early_stopping_patience, 6, 10_000, f"{path}.early_stopping_patience"
            ),
            seed=training.seed,
            optimizer=optimizer,
            momentum=momentum,
            weight_decay=_of(
                training, "weight_decay", 0.004, optimizer == pb.OPTIMIZER_ADAMW, path
            ),
            schedule=pb.LearningRateSchedule.ValueType(
                known(training.schedule, pb.LearningRateSchedule, f"{path}.schedule")
            ),
            warmup_epochs=training.warmup_epochs,
            l2=between(training.l2, 1, f"{path}.l2"),
            max_gradient_norm=between(
                training.max_gradient_norm, 1000, f"{path}.max_gradient_norm"
            ),
            class_weights=pb.ClassWeights.ValueType(
                known(training.class_weights, pb.ClassWeights, f"{path}.class_weights")
            ),
            ensemble_size=count(training.ensemble_size, 1, MAX_NETWORKS, f"{path}.ensemble_size"),
            combination=pb.Combination.ValueType(
                known(training.combination, pb.Combination, f"{path}.combination")
            ),
            precision=pb.Precision.ValueType(
                known(training.precision, pb.Precision, f"{path}.precision")
            ),
        )

    def to_proto(self) -> pb.Training:
        """Render it with every default written out, but for the members."""
        return pb.Training(
            max_epochs=self.max_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            early_stopping_patience=self.early_stopping_patience,
            seed=self.seed,
            optimizer=self.optimizer,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            warmup_epochs=self.warmup_epochs,
            l2=self.l2,
            max_gradient_norm=self.max_gradient_norm,
            class_weights=self.class_weights,
            ensemble_size=self.ensemble_size,
            combination=self.combination,
            precision=self.precision,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimization:
    """Which graph is published; the fields are those of the message of the same name."""

    objective: pb.Objective.ValueType = pb.OBJECTIVE_ACCURACY
    max_accuracy_drop: float = 0.01
    max_latency_us: float = 0.0
    """0: no limit."""

    @classmethod
    def parse(cls, optimization: pb.Optimization, path: str) -> Self:
        """Parse what a caller asks for; see `Training.parse`."""
        drop = optimization.max_accuracy_drop
        given = optimization.HasField("max_accuracy_drop")
        return cls(
            objective=pb.Objective.ValueType(
                known(optimization.objective, pb.Objective, f"{path}.objective")
            ),
            max_accuracy_drop=between(drop if given else 0.01, 1, f"{path}.max_accuracy_drop"),
            max_latency_us=finite(optimization.max_latency_us, f"{path}.max_latency_us"),
        )

    def to_proto(self) -> pb.Optimization:
        """Render it with every default written out."""
        return pb.Optimization(
            objective=self.objective,
            max_accuracy_drop=self.max_accuracy_drop,
            max_latency_us=self.max_latency_us,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Explaining:
    """Which graph explains the answers: the message `Explanation`."""

    gradients: bool = True
    """Integrated gradients; else none."""
    steps: int = 0
    """Points between the baseline and a row. 0: as many as it takes."""

    @classmethod
    def parse(cls, explanation: pb.Explanation, path: str, *, possible: bool) -> Self:
        """Parse what a caller asks for; see `Training.parse`.

        Args:
            explanation: What they said.
            path: Of this message, to name fields by.
            possible: Whether answers of the task can be explained; if not, they are not.

        Raises:
            FieldInvalidError: A value is out of its range, or the answers cannot be explained.
        """
        method = known(explanation.method, pb.ExplanationMethod, f"{path}.method")
        none = pb.EXPLANATION_METHOD_NONE
        if explanation.method not in (pb.EXPLANATION_METHOD_UNSPECIFIED, none) and not possible:
            name = pb.ExplanationMethod.Name(pb.ExplanationMethod.ValueType(method))
            raise FieldInvalidError(f"{path}.method", name, "be NONE for this task")
        steps = count(explanation.steps, 0, 1024, f"{path}.steps")
        return cls(gradients=possible and method != none, steps=steps)

    def to_proto(self) -> pb.Explanation:
        """Render it with every default written out."""
        method = pb.EXPLANATION_METHOD_INTEGRATED_GRADIENTS
        if not self.gradients:
            method = pb.EXPLANATION_METHOD_NONE
        return pb.Explanation(method=method, steps=self.steps)


def _of(
    training: pb.Training,
    name: Literal["momentum", "weight_decay"],
    default: float,
    wanted: bool,  # noqa: FBT001 whether the optimizer has it
    path: str,
) -> float | None:
    """Return the value of a field that only one optimizer has."""
    given = training.HasField(name)
    if not wanted:
        if given:
            owner = "OPTIMIZER_SGD" if name == "momentum" else "OPTIMIZER_ADAMW"
            rule = f"be left out, or the optimizer be {owner}"
            raise FieldInvalidError(f"{path}.{name}", getattr(training, name), rule)
        return None
    return between(getattr(training, name) if given else default, 1, f"{path}.{name}")
