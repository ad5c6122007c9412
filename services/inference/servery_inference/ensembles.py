"""Pipelines of models that answer as one: each step runs as soon as its tensors are there.

Tensors go from step to step as they are, without a copy.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass

from servery.inference.v1 import model_config_pb2 as pb
from servery_inference.ensemble_members import Lease, Stage
from servery_inference.ensemble_plan import Plan, Step
from servery_inference.request import Array, Terms, Timing
from servery_inference.runner import Result
from servery_inference.statistics import ModelStatistics


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
