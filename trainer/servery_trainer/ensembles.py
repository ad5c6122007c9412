"""How the networks of a job become one: how much each counts, and what is told of them."""

from collections.abc import Sequence
from typing import Any

from servery.trainer.v1 import training_pb2
from servery_trainer import export, stacking
from servery_trainer.examples import Examples
from servery_trainer.frameworks import Framework, Network
from servery_trainer.objectives import Objective
from servery_trainer.preprocessing import FloatArray, Preprocessing
from servery_trainer.spec import Spec


def fit_weights(
    framework: Framework,
    spec: Spec,
    networks: Sequence[Network],
    examples: Examples,
    preprocessing: Preprocessing,
    objective: Objective,
) -> FloatArray | None:
    """Return how much each network counts; None: all alike."""
    if spec.training.combination != training_pb2.COMBINATION_STACKED:
        return None
    rows = examples.split.validation
    inputs = examples.take(rows)
    answers = [
        export.predict(framework.answering([network], objective), preprocessing, inputs)
        for network in networks
    ]
    return stacking.fit_weights(answers, stacking.right_answers(examples.target, rows))


def lineage(
    spec: Spec, histories: Sequence[Sequence[training_pb2.Epoch]], weights: FloatArray | None
) -> Any:
    """Tell of several networks what each is and how much its answers count."""
    count = len(spec.networks)
    if count == 1:
        return {}
    shares = [1 / count] * count if weights is None else weights.tolist()
    return {
        "networks": [
            {
                "family": family.name,
                "seed": (spec.training.seed + number) % 2**32,
                "validation_loss": min(epoch.validation_loss for epoch in epochs),
                "weight": share,
            }
            for number, (family, epochs, share) in enumerate(
                zip(spec.networks, histories, shares, strict=True)
            )
        ]
    }
