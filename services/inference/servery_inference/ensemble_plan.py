"""What the config of an ensemble says: which models run, and which tensors go where."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from servery.inference.v1 import model_config_pb2 as pb
from servery_inference.datatypes import BY_CONFIG
from servery_inference.engine import LoadFailedError
from servery_inference.model_config import ENSEMBLE

_NEWEST: Final = -1


@dataclass(frozen=True, slots=True)
class Step:
    """One model of a pipeline."""

    model: str
    version: str
    """Empty for the newest."""

    inputs: Mapping[str, str]
    """Tensor of the pipeline by input of the model."""

    outputs: Mapping[str, str]
    """Tensor of the pipeline by output of the model."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a pipeline, in an order in which each finds its tensors."""

    steps: tuple[Step, ...]

    @classmethod
    def of(cls, config: pb.ModelConfig) -> Self:
        """Read a config.

        Raises:
            LoadFailedError: The steps do not make every output from the inputs, each tensor once.
        """
        steps = [_step(step) for step in config.ensemble_scheduling.step]
        if not steps:
            raise LoadFailedError("must specify 'step' for ensemble: it has none")
        known = {tensor.name for tensor in config.input}
        made = set(known)
        for step in steps:
            for tensor in step.outputs.values():
                if tensor in made:
                    raise LoadFailedError(
                        f"tensor '{tensor}' can appear in an output map only once, and not as an"
                        " input of the ensemble too"
                    )
                made.add(tensor)
        for step in steps:
            for tensor in step.inputs.values():
                if tensor not in made:
                    raise LoadFailedError(
                        f"step '{step.model}' needs the tensor '{tensor}', which no step and no"
                        " input of the ensemble gives"
                    )
        for output in config.output:
            if output.name not in made:
                raise LoadFailedError(f"no step gives the output '{output.name}' of the ensemble")
        return cls(tuple(_in_order(steps, known)))


def complete(model: str, given: pb.ModelConfig) -> pb.ModelConfig:
    """Fill in what clients expect to find in the config of an ensemble.

    Raises:
        LoadFailedError: It is of another model, or a tensor is not described.
    """
    config = pb.ModelConfig()
    config.CopyFrom(given)
    if config.name not in ("", model):
        raise LoadFailedError(
            f"the config is of the model '{config.name[:100]}', but the model is called '{model}'"
        )
    if config.platform not in ("", ENSEMBLE) or config.backend:
        raise LoadFailedError(f"an ensemble has the platform '{ENSEMBLE}' and no backend")
    if config.max_batch_size < 0:
        raise LoadFailedError(f"max_batch_size is {config.max_batch_size}; it must be at least 0")
    for kind, tensors in (("input", config.input), ("output", config.output)):
        if not tensors:
            raise LoadFailedError(f"the ensemble has no {kind}")
        for tensor in tensors:
            if not tensor.name or tensor.data_type not in BY_CONFIG:
                raise LoadFailedError(
                    f"{kind} '{tensor.name[:100]}' of the ensemble needs a name, a data_type that"
                    " the protocol can carry, and dims"
                )
    config.name, config.platform = model, ENSEMBLE
    if config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
    return config


def _step(step: pb.ModelEnsembling.Step) -> Step:
    if not step.model_name or not step.input_map or not step.output_map:
        raise LoadFailedError("every step of an ensemble needs model_name, input_map, output_map")
    version = "" if step.model_version in (_NEWEST, 0) else str(step.model_version)
    return Step(step.model_name, version, dict(step.input_map), dict(step.output_map))


def _in_order(steps: Sequence[Step], known: Collection[str]) -> list[Step]:
    ordered: list[Step] = []
    tensors, left = set(known), list(steps)
    while left:
        ready = [step for step in left if tensors.issuperset(step.inputs.values())]
        if not ready:
            names = ", ".join(f"'{step.model}'" for step in left)
            raise LoadFailedError(f"the steps {names} of the ensemble wait for each other")
        ordered += ready
        for step in ready:
            tensors |= set(step.outputs.values())
            left.remove(step)
    return ordered
