"""Which values a study tries next, and which trials it stops early: decided by Optuna.

Optuna's own memory is built anew from what the trainer knows of the trials, so that there is one
truth, and a study goes on after the trainer was killed.
"""

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from servery.trainer.v1 import tuning_pb2 as pb
from servery_trainer.search_space import Assignments, Choice, Parameter, Whole


@dataclass(frozen=True, slots=True)
class Past:
    """A trial that was made before. One without an `outcome` goes on."""

    assignments: Assignments
    curve: Mapping[int, float]
    """Value of the metric by epoch."""
    state: pb.TrialState.ValueType
    value: float | None


class Search:
    """The memory of one study. Any thread may call it; calls block for milliseconds.

    Args:
        parameters: What to choose.
        sampler: How to choose it.
        pruner: How to stop early.
        seed: Of the choices.
        minimize: Whether less of the metric is better.
        past: The trials made so far, in order.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        sampler: pb.Sampler.ValueType,
        pruner: pb.Pruner.ValueType,
        seed: int,
        *,
        minimize: bool,
        past: Iterable[Past] = (),
    ) -> None:
        self._distributions = {p.path: _distribution(p) for p in parameters}
        self._lock = threading.Lock()
        self._trials: list[optuna.Trial] = []
        past = list(past)
        # The draws behind a restart must not repeat those before it.
        seed = (seed + 1_000_003 * len(past)) % 2**32
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(
            direction="minimize" if minimize else "maximize",
            sampler=_sampler(sampler, seed),
            pruner=_pruner(pruner),
        )
        for trial in past:
            self._replay(trial)

    def ask(self) -> Assignments:
        """Return the values of one more trial; its number follows that of the last."""
        with self._lock:
            trial = self._study.ask(self._distributions)
            self._trials.append(trial)
            return {
                path: json.loads(value)
                if isinstance(self._distributions[path], CategoricalDistribution)
                else value
                for path, value in trial.params.items()
            }

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Note the metric of a trial after an epoch not reported yet; tell whether to stop it."""
        with self._lock:
            trial = self._trials[number - 1]
            trial.report(value, epoch)
            return trial.should_prune()

    def tell(self, number: int, state: pb.TrialState.ValueType, value: float | None) -> None:
        """Note how a trial ended."""
        with self._lock:
            self._tell(number, state, value)

    def _tell(self, number: int, state: pb.TrialState.ValueType, value: float | None) -> None:
        trial = self._trials[number - 1]
        if state == pb.TRIAL_STATE_COMPLETED:
            self._study.tell(trial, value)
        elif state == pb.TRIAL_STATE_PRUNED:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    def _replay(self, past: Past) -> None:
        values = {
            path: json.dumps(value)
            if isinstance(self._distributions[path], CategoricalDistribution)
            else value
            for path, value in past.assignments.items()
        }
        self._study.enqueue_trial(values)
        trial = self._study.ask(self._distributions)
        self._trials.append(trial)
        for epoch, value in sorted(past.curve.items()):
            trial.report(value, epoch)
            trial.should_prune()  # Pruners remember what they were asked.
        if past.state != pb.TRIAL_STATE_RUNNING:
            self._tell(len(self._trials), past.state, past.value)


def _distribution(parameter: Parameter) -> BaseDistribution:
    domain = parameter.domain
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.texts)
    if isinstance(domain, Whole):
        return IntDistribution(domain.low, domain.high, log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def _sampler(sampler: pb.Sampler.ValueType, seed: int) -> Any:
    if sampler == pb.SAMPLER_RANDOM:
        return optuna.samplers.RandomSampler(seed=seed)
    # The liar keeps trials that run at the same time apart.
    return optuna.samplers.TPESampler(n_startup_trials=10, constant_liar=True, seed=seed)


def _pruner(pruner: pb.Pruner.ValueType) -> Any:
    match pruner:
        case pb.PRUNER_NONE:
            return optuna.pruners.NopPruner()
        case pb.PRUNER_ASHA:
            return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=4)
        case _:
            return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3)
