"""Specs that tests start from."""

from typing import Any

from servery.trainer.v1 import training_pb2 as pb

DATASET = f"tenants/default/datasets/{'a' * 64}"
MODEL = "tenants/default/models/wards"


def tabular(**task: Any) -> pb.TrainingSpec:
    """The least a tabular job must say, and `task`."""
    return pb.TrainingSpec(
        dataset=DATASET,
        tabular_classification=pb.TabularClassification(**({"target": "kind"} | task)),
        publication=pb.Publication(model=MODEL),
    )


def table(task: str, **fields: Any) -> pb.TrainingSpec:
    """The least a job must say, and `fields` of the task of that name."""
    spec = pb.TrainingSpec(dataset=DATASET, publication=pb.Publication(model=MODEL))
    message = getattr(spec, task)
    message.CopyFrom(type(message)(**fields))
    return spec


def image(**task: Any) -> pb.TrainingSpec:
    """The least an image job must say, and `task`."""
    return pb.TrainingSpec(
        dataset=DATASET,
        image_classification=pb.ImageClassification(**task),
        publication=pb.Publication(model=MODEL),
    )


def text(family: dict[str, Any] | None = None, **task: Any) -> pb.TrainingSpec:
    """The least a text job must say, and `task`."""
    return pb.TrainingSpec(
        dataset=DATASET,
        text_classification=pb.TextClassification(**({"text": "sms", "target": "kind"} | task)),
        publication=pb.Publication(model=MODEL),
        **(family or {}),
    )
