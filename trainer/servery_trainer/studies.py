"""A study: what it is asked to do, parsed, and how its trials compare."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Self

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.trainer.v1 import training_pb2
from servery.trainer.v1 import tuning_pb2 as pb
from servery_rpc.errors import FieldInvalidError, ServeryError
from servery_rpc.names import StudyName
from servery_trainer.fields import count, known
from servery_trainer.search_space import Assignments, Parameter, assigned, parse_space
from servery_trainer.spec import ROOT, Spec, parse_spec
from servery_trainer.tasks import tells_accuracy
from servery_trainer.terms import Capacity, Terms, parse_priority, parse_seconds

FIELD: Final = "study"
MAX_TRIALS: Final = 1000
FINAL: Final = frozenset(
    {pb.STUDY_STATE_SUCCEEDED, pb.STUDY_STATE_FAILED, pb.STUDY_STATE_CANCELLED}
)
_MAX_FAILURES: Final = 10


class StudyNotFoundError(ServeryError):
    """No study has this name."""

    reason = reasons.ERROR_REASON_STUDY_NOT_FOUND

    def __init__(self, name: StudyName) -> None:
        super().__init__(f"{name} does not exist", name=str(name))


class StudyEndedError(ServeryError):
    """The study has ended: too late to cancel."""

    reason = reasons.ERROR_REASON_STUDY_ENDED

    def __init__(self, study: pb.Study) -> None:
        state = pb.StudyState.Name(study.state)
        super().__init__(
            f"{study.name} cannot be cancelled any more, it is in state {state}",
            name=study.name,
            state=state,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a study does; the fields are those of the message `Study`."""

    asked: pb.Study
    """As its creator wrote it."""
    spec: Spec
    """What every trial trains, but for the parameters."""
    parameters: tuple[Parameter, ...]
    sampler: pb.Sampler.ValueType
    pruner: pb.Pruner.ValueType
    metric: pb.StudyMetric.ValueType
    max_trials: int
    max_duration_s: float
    """0: no limit."""
    parallel_trials: int
    seed: int
    terms: Terms
    """Of each trial."""
    without_publication: bool

    @classmethod
    def parse(cls, study: pb.Study, capacity: Capacity) -> Self:
        """Parse what a caller asks for.

        Raises:
            FieldInvalidError: A field is malformed or out of its range.
        """
        with spec_errors():
            spec = parse_spec(study.spec)
        metric = pb.StudyMetric.ValueType(known(study.metric, pb.StudyMetric, f"{FIELD}.metric"))
        if not minimized(metric) and not tells_accuracy(spec.task):
            rule = f"be VALIDATION_LOSS: {spec.task.name} knows no accuracy"
            raise FieldInvalidError(f"{FIELD}.metric", pb.StudyMetric.Name(metric), rule)
        if not 0 <= study.max_trials <= MAX_TRIALS:
            rule = f"be 0 to {MAX_TRIALS}"
            raise FieldInvalidError(f"{FIELD}.max_trials", study.max_trials, rule)
        duration_s = parse_seconds(study.max_duration_s, f"{FIELD}.max_duration_s")
        if not study.max_trials and not duration_s:
            rule = "be 1 or more, or max_duration_s over 0: a study needs an end"
            raise FieldInvalidError(f"{FIELD}.max_trials", 0, rule)
        return cls(
            asked=study,
            spec=spec,
            parameters=parse_space(study.parameters, study.spec, f"{FIELD}.parameters"),
            sampler=pb.Sampler.ValueType(known(study.sampler, pb.Sampler, f"{FIELD}.sampler")),
            pruner=pb.Pruner.ValueType(known(study.pruner, pb.Pruner, f"{FIELD}.pruner")),
            metric=metric,
            max_trials=study.max_trials or MAX_TRIALS,
            max_duration_s=duration_s,
            parallel_trials=count(study.parallel_trials, 1, 64, f"{FIELD}.parallel_trials"),
            seed=study.seed,
            terms=Terms(
                resources=capacity.parse(study.resources, f"{FIELD}.resources"),
                priority=parse_priority(study, f"{FIELD}.priority"),
                deadline_s=parse_seconds(study.trial_deadline_s, f"{FIELD}.trial_deadline_s"),
                without_publication=True,
            ),
            without_publication=study.without_publication,
        )

    @property
    def minimize(self) -> bool:
        """Whether less of the metric is better."""
        return minimized(self.metric)

    def to_proto(self) -> pb.Study:
        """Render it with every default written out."""
        return pb.Study(
            spec=self.asked.spec,
            parameters=self.asked.parameters,
            sampler=self.sampler,
            pruner=self.pruner,
            metric=self.metric,
            max_trials=self.max_trials,
            max_duration_s=self.max_duration_s,
            parallel_trials=self.parallel_trials,
            seed=self.seed,
            priority=self.terms.priority,
            resources=self.terms.resources.to_proto(),
            trial_deadline_s=self.terms.deadline_s,
            without_publication=self.without_publication,
        )

    def trial_spec(self, values: Assignments) -> training_pb2.TrainingSpec:
        """Return what a trial trains.

        Raises:
            FieldInvalidError: The values together are none that a job takes.
        """
        spec = assigned(self.asked.spec, values)
        with spec_errors():
            parse_spec(spec)
        return spec

    def measure(self, epochs: Sequence[training_pb2.Epoch]) -> float | None:
        """Return the metric in the epoch whose weights are kept; None if it has none there."""
        if not epochs:
            return None
        kept = min(epochs, key=lambda epoch: epoch.validation_loss)
        if self.minimize:
            return kept.validation_loss
        return kept.metrics.get("val_accuracy")

    def live(self, progress: training_pb2.Progress) -> float | None:
        """Return the metric after the last epoch; None if it is not told."""
        name = "val_loss" if self.minimize else "val_accuracy"
        return progress.metrics.get(name)


@contextmanager
def spec_errors() -> Iterator[None]:
    """Name fields of a spec as those of a study, not of a job."""
    try:
        yield
    except FieldInvalidError as error:
        field = error.metadata["field"]
        if field.startswith(ROOT):
            field = f"{FIELD}.spec{field.removeprefix(ROOT)}"
        raise FieldInvalidError(field, error.metadata["value"], error.metadata["rule"]) from None


def minimized(metric: pb.StudyMetric.ValueType) -> bool:
    """Tell whether less of a metric is better."""
    return metric == pb.STUDY_METRIC_VALIDATION_LOSS


def ranked(trials: Iterable[pb.Trial], metric: pb.StudyMetric.ValueType) -> list[pb.Trial]:
    """Return the COMPLETED trials, the best first; of equal ones the first."""
    sign = 1 if minimized(metric) else -1
    completed = [trial for trial in trials if trial.state == pb.TRIAL_STATE_COMPLETED]
    return sorted(completed, key=lambda trial: (sign * trial.value, trial.number))


def hopeless(trials: Sequence[pb.Trial]) -> bool:
    """Tell whether so many trials in a row failed that more would, too."""
    ended = [trial for trial in trials if trial.state != pb.TRIAL_STATE_RUNNING]
    last = ended[-_MAX_FAILURES:]
    return len(last) == _MAX_FAILURES and all(t.state == pb.TRIAL_STATE_FAILED for t in last)


def assignments(trial: pb.Trial) -> Mapping[str, object]:
    """Return the values of a trial."""
    return {one.path: json.loads(one.value) for one in trial.assignments}


def job_error(error: ServeryError) -> training_pb2.JobError:
    """Return an error as a message."""
    return training_pb2.JobError(reason=error.reason, message=str(error), metadata=error.metadata)


def unmeasured() -> training_pb2.JobError:
    """Return why a trial whose job succeeded cannot be compared."""
    return training_pb2.JobError(
        reason=reasons.ERROR_REASON_STUDY_FAILED,
        message="the epochs of this job do not tell the metric of the study; use the validation"
        " loss",
        metadata={"trial_count": "1"},
    )


def no_trial_completed(trial_count: int) -> training_pb2.JobError:
    """Return why a study without a best trial failed."""
    return training_pb2.JobError(
        reason=reasons.ERROR_REASON_STUDY_FAILED,
        message=f"none of {trial_count} trials completed; their errors say why",
        metadata={"trial_count": str(trial_count)},
    )
