"""The models that ensembles are made of: where they are found, and whether they fit together."""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Protocol, Self, TypeAlias

from servery.inference.v1 import model_config_pb2 as pb
from servery_inference.ensemble_plan import Plan, Step, complete
from servery_inference.model_config import offered
from servery_inference.request import Array, Terms
from servery_inference.signature import Signature, Tensor
from servery_rpc.errors import ServeryError


class Stage(Protocol):
    """A model as a step sees it."""

    signature: Signature

    async def compute(
        self,
        feed: Mapping[str, Array],
        names: Collection[str],
        terms: Terms,
        deadline: float | None,
    ) -> dict[str, Array]:
        """Run on arrays; see `Servable.compute`."""


Lease: TypeAlias = Callable[[str, str], AbstractContextManager[Stage]]
"""Finds a model by name and version, and keeps it loaded for the length of the block."""


class Members:
    """The models that a pipeline is made of, which come and go on their own.

    Args:
        config: Of the ensemble, complete.
        plan: Its steps.
        lease: Finds their models.
    """

    def __init__(self, config: pb.ModelConfig, plan: Plan, lease: Lease) -> None:
        self._name = config.name
        self._offered = offered(config)
        self._plan = plan
        self._lease = lease

    @classmethod
    def of(cls, model: str, given: pb.ModelConfig, lease: Lease) -> Self:
        """Read the config of the ensemble `model`.

        Raises:
            LoadFailedError: See `complete` and `Plan.of`.
        """
        config = complete(model, given)
        return cls(config, Plan.of(config), lease)

    def problem(self) -> str:
        """Return why the pipeline cannot be served now; empty if it can."""
        tensors = dict(self._offered.inputs)
        for step in self._plan.steps:
            try:
                with self._lease(step.model, step.version) as stage:
                    signature = stage.signature
            except ServeryError:
                version = f" {step.version}" if step.version else ""
                return (
                    f"ensemble '{self._name}' depends on '{step.model}' which has no loaded"
                    f" version{version}"
                )
            if problem := self._misfit(step, signature, tensors):
                return problem
            for name, tensor in step.outputs.items():
                tensors[tensor] = signature.outputs[name]
        for name, wanted in self._offered.outputs.items():
            if problem := _difference(f"output '{name}'", wanted, tensors[name]):
                return problem
        return ""

    def _misfit(self, step: Step, signature: Signature, tensors: Mapping[str, Tensor]) -> str:
        most = self._offered.max_batch_size
        if most > signature.max_batch_size > 0:
            return (
                f"it has max_batch_size {most}, but step '{step.model}' takes"
                f" {signature.max_batch_size} rows at most"
            )
        for kind, named, there in (
            ("input", step.inputs, signature.inputs),
            ("output", step.outputs, signature.outputs),
        ):
            if unknown := [name for name in named if name not in there]:
                return (
                    f"step '{step.model}' names the {kind} '{unknown[0]}', which it does not have"
                )
        for name, known in signature.inputs.items():
            if name not in step.inputs and not known.optional:
                return f"step '{step.model}' gives no input '{name}'"
        for name, tensor in step.inputs.items():
            what = f"input '{name}' of step '{step.model}'"
            if problem := _difference(what, signature.inputs[name], tensors[tensor]):
                return problem
        return ""


def _difference(what: str, wanted: Tensor, given: Tensor) -> str:
    if wanted.datatype != given.datatype:
        return f"{what} is {wanted.datatype.wire}, but gets {given.datatype.wire}"
    fits = len(wanted.shape) == len(given.shape) and all(
        -1 in sizes or sizes[0] == sizes[1] for sizes in zip(wanted.shape, given.shape, strict=True)
    )
    if not fits:
        return f"{what} has the shape {list(wanted.shape)}, but gets {list(given.shape)}"
    return ""
