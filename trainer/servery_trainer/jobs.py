"""A training job: how it may move from state to state, and what its callers see of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.errors.v1.error_reason_pb2 import ErrorReason
from servery.trainer.v1 import training_pb2 as pb
from servery_rpc.errors import ServeryError
from servery_rpc.names import TrainingJobName

QUEUED: Final = pb.TRAINING_JOB_STATE_QUEUED
RUNNING: Final = pb.TRAINING_JOB_STATE_RUNNING
PUBLISHING: Final = pb.TRAINING_JOB_STATE_PUBLISHING
SUCCEEDED: Final = pb.TRAINING_JOB_STATE_SUCCEEDED
FAILED: Final = pb.TRAINING_JOB_STATE_FAILED
CANCELLED: Final = pb.TRAINING_JOB_STATE_CANCELLED

_NEXT: Final[Mapping[int, frozenset[int]]] = {
    QUEUED: frozenset({RUNNING, CANCELLED}),
    RUNNING: frozenset({QUEUED, PUBLISHING, SUCCEEDED, FAILED, CANCELLED}),
    PUBLISHING: frozenset({SUCCEEDED, FAILED, CANCELLED}),
}
"""The states that may follow each; none follows a final one."""


@dataclass(frozen=True, slots=True)
class Crashed:
    """The process died without saying why; another attempt may do better."""

    error: pb.JobError


Outcome = pb.TrainingResult | pb.JobError | Crashed
"""How the process of a job ended by itself."""

MAX_STARTS: Final = 20
"""Attempts of a job at most, also over restarts of the trainer: it might be what stops that."""


class TrainingJobNotFoundError(ServeryError):
    """No training job has this name."""

    reason = reasons.ERROR_REASON_TRAINING_JOB_NOT_FOUND

    def __init__(self, name: TrainingJobName) -> None:
        super().__init__(f"{name} does not exist", name=str(name))


class TrainingJobEndedError(ServeryError):
    """The job has ended, or its version may already be visible: too late to cancel."""

    reason = reasons.ERROR_REASON_TRAINING_JOB_ENDED

    def __init__(self, job: pb.TrainingJob) -> None:
        state = pb.TrainingJobState.Name(job.state)
        super().__init__(
            f"{job.name} cannot be cancelled any more, it is in state {state}",
            name=job.name,
            state=state,
        )


class TrainingStorageFullError(ServeryError):
    """The disk under a job is full."""

    reason = reasons.ERROR_REASON_TRAINING_STORAGE_FULL

    def __init__(self, free_bytes: int) -> None:
        super().__init__(
            f"the disk of the trainer is full ({free_bytes} bytes are free); free some space, then"
            " train again",
            free_bytes=str(free_bytes),
        )


def is_final(state: int) -> bool:
    """Tell whether a job stays in `state` for ever."""
    return state not in _NEXT


def move(job: pb.TrainingJob, to: "pb.TrainingJobState.ValueType", now: datetime) -> None:
    """Change the state of `job` and what follows from it: the attempt, the times, the phase.

    Raises:
        ValueError: `to` cannot follow; a bug of the caller.
    """
    if to not in _NEXT.get(job.state, frozenset()):
        names = pb.TrainingJobState.Name
        raise ValueError(f"{job.name} cannot go from {names(job.state)} to {names(to)}")
    job.state = to
    if to == QUEUED:
        job.ClearField("progress")
    elif to == RUNNING:
        job.attempt += 1
        job.progress.CopyFrom(pb.Progress(phase=pb.PHASE_STARTING))
        if not job.HasField("start_time"):
            job.start_time.FromDatetime(now.astimezone(UTC))
    elif to == PUBLISHING:
        job.progress.CopyFrom(pb.Progress(phase=pb.PHASE_PUBLISHING))
    elif is_final(to):
        job.end_time.FromDatetime(now.astimezone(UTC))


def visible(job: pb.TrainingJob) -> pb.TrainingJob:
    """Return what callers see: the result is kept from the process on, but shown once published."""
    shown = pb.TrainingJob()
    shown.CopyFrom(job)
    if job.state != SUCCEEDED:
        shown.ClearField("result")
    return shown


def deadline_passed(deadline_s: float) -> pb.JobError:
    """Return the error of a job that ran for as long as it may."""
    return pb.JobError(
        reason=ErrorReason.ERROR_REASON_TRAINING_DEADLINE,
        message=f"the job ran until its deadline of {deadline_s:g} s; its last checkpoint is kept"
        " for a week: resume it with a later one",
        metadata={"deadline_s": f"{deadline_s:g}"},
    )


def crash(exit_in_words: str, message: str) -> pb.JobError:
    """Return the error of a job whose process ended without saying how it went."""
    return pb.JobError(
        reason=ErrorReason.ERROR_REASON_TRAINING_JOB_CRASHED,
        message=message,
        metadata={"exit": exit_in_words},
    )
