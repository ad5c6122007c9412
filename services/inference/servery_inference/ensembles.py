"""Pipelines of models that answer as one: each step runs as soon as its tensors are there.

Tensors go from step to step as they are, without a copy.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Final, Protocol, Self, TypeAlias

from servery.inference.v1 import model_config_pb2 as pb
from servery_inference.datatypes import BY_CONFIG
from servery_inference.engine import LoadFailedError
from servery_inference.model_config import ENSEMBLE
from servery_inference.request import Array, Terms, Timing
from servery_inference.runner import Result
from servery_inference.statistics import ModelStatistics

_NEWEST: Final = -1


class Stage(Protocol):
    """A model as a step sees it."""

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


class Ensemble:
    """Runs a pipeline. For one event loop.

    Args:
        config: Of the ensemble, complete.
        plan: Its steps.
        lease: Finds their models.
        statistics: Gets every run.
    """

    def __init__(
        self,
        config: pb.ModelConfig,
        plan: Plan,
        lease: Lease,
        statistics: ModelStatistics,
    ) -> None:
        self._steps = plan.steps
        self._lease = lease
        self._statistics = statistics
        limit = config.ensemble_scheduling.max_inflight_requests
        self._places = [asyncio.Semaphore(limit) if limit else nullcontext() for _ in self._steps]

    async def run(
        self,
        feed: Mapping[str, Array],
        names: Sequence[str],
        rows: int,
        size: int,
        terms: Terms,
        deadline: float | None,
    ) -> Result:
        """Run all steps on one request; see `Runner.run`. All models stay loaded meanwhile."""
        start = time.perf_counter_ns()
        with ExitStack() as leases:
            stages = [
                leases.enter_context(self._lease(step.model, step.version)) for step in self._steps
            ]
            run = _Run(self._steps, stages, self._places, terms, deadline, dict(feed))
            await run.finish()
        took = time.perf_counter_ns() - start
        self._statistics.record_execution(rows, 0, took, 0)
        return Result([run.tensors[name] for name in names], Timing(0, 0, took, 0))


@dataclass(slots=True)
class _Run:
    """One request on its way through the steps."""

    steps: Sequence[Step]
    stages: Sequence[Stage]
    places: Sequence[asyncio.Semaphore | nullcontext[None]]
    terms: Terms
    deadline: float | None
    tensors: dict[str, Array]

    async def finish(self) -> None:
        """Run every step; on the first failure the others are ended."""
        waiting = list(range(len(self.steps)))
        running: set[asyncio.Task[None]] = set()
        try:
            while waiting or running:
                ready = [at for at in waiting if self._is_ready(at)]
                waiting = [at for at in waiting if at not in ready]
                if len(ready) == 1 and not running:
                    await self._run(ready[0])
                    continue
                running |= {asyncio.create_task(self._run(at)) for at in ready}
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _is_ready(self, at: int) -> bool:
        return all(tensor in self.tensors for tensor in self.steps[at].inputs.values())

    async def _run(self, at: int) -> None:
        step = self.steps[at]
        feed = {name: self.tensors[tensor] for name, tensor in step.inputs.items()}
        async with self.places[at]:
            outputs = await self.stages[at].compute(
                feed, step.outputs.keys(), self.terms, self.deadline
            )
        for name, tensor in step.outputs.items():
            self.tensors[tensor] = outputs[name]
