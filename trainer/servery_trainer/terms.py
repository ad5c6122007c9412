"""How a job is to be run, beside what it is to train: parsed, every default filled in."""

import math
from dataclasses import dataclass
from typing import Final, Self

from servery.trainer.v1 import training_pb2 as pb
from servery.trainer.v1 import tuning_pb2
from servery_rpc.errors import FieldInvalidError
from servery_rpc.names import TrainingJobName
from servery_trainer.fields import count, finite
from servery_trainer.resources import Resources

DEFAULT_PRIORITY: Final = 50
DEFAULT_ATTEMPTS: Final = 3
MAX_ATTEMPTS: Final = 10
MAX_DEADLINE_S: Final = 366 * 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a job is to be run; the fields are those of `TrainingJob`."""

    resources: Resources
    priority: int = DEFAULT_PRIORITY
    deadline_s: float = 0.0
    """0: none."""
    max_attempts: int = DEFAULT_ATTEMPTS
    without_publication: bool = False
    resume_from: TrainingJobName | None = None

    @classmethod
    def parse(cls, job: pb.TrainingJob, capacity: "Capacity", path: str = "training_job") -> Self:
        """Parse what a caller asks for.

        Args:
            job: What they said.
            capacity: What there is.
            path: Of the message, to name fields by.

        Raises:
            FieldInvalidError: A value is out of its range, or more than there is.
        """
        return cls(
            resources=capacity.parse(job.resources, f"{path}.resources"),
            priority=parse_priority(job, f"{path}.priority"),
            deadline_s=parse_seconds(job.deadline_s, f"{path}.deadline_s"),
            max_attempts=count(
                job.max_attempts, DEFAULT_ATTEMPTS, MAX_ATTEMPTS, f"{path}.max_attempts"
            ),
            without_publication=job.without_publication,
            resume_from=TrainingJobName.parse(job.resume_from, f"{path}.resume_from")
            if job.resume_from
            else None,
        )

    def apply(self, job: pb.TrainingJob) -> None:
        """Write them into a job."""
        job.resources.CopyFrom(self.resources.to_proto())
        job.priority = self.priority
        job.deadline_s = self.deadline_s
        job.max_attempts = self.max_attempts
        job.without_publication = self.without_publication
        job.resume_from = str(self.resume_from or "")


@dataclass(frozen=True, slots=True)
class Capacity:
    """What all jobs together may use."""

    machine: Resources

    parallel_jobs: int
    """Processes at a time."""

    @classmethod
    def of(cls, machine: Resources, cores: int, memory_bytes: int, parallel_jobs: int) -> Self:
        """Return what an operator leaves of a machine; 0 cores or bytes mean all of them."""
        left = Resources(
            min(cores or machine.cores, machine.cores),
            min(memory_bytes or machine.memory_bytes, machine.memory_bytes),
        )
        return cls(left, parallel_jobs)

    def parse(self, asked: pb.Resources, path: str) -> Resources:
        """Return what a job gets: what it asks for, or an equal share.

        Raises:
            FieldInvalidError: It asks for more than there is.
        """
        share = self.machine.share(self.parallel_jobs)
        return Resources(
            _at_most(asked.cores, share.cores, self.machine.cores, f"{path}.cores"),
            _at_most(
                asked.memory_bytes,
                share.memory_bytes,
                self.machine.memory_bytes,
                f"{path}.memory_bytes",
            ),
        )


def parse_priority(job: pb.TrainingJob | tuning_pb2.Study, field: str) -> int:
    """Return how urgent a job, or each trial of a study, is.

    Raises:
        FieldInvalidError: It is not 0 to 100.
    """
    if not 0 <= job.priority <= 100:
        raise FieldInvalidError(field, job.priority, "be 0 to 100")
    return job.priority if job.HasField("priority") else DEFAULT_PRIORITY


def parse_seconds(value: float, field: str) -> float:
    """Return a time that must pass, 0 for none.

    Raises:
        FieldInvalidError: It is below 0, over a year or not a number.
    """
    if finite(value, field) > MAX_DEADLINE_S:
        raise FieldInvalidError(field, value, f"be at most {MAX_DEADLINE_S:.0f}, a year")
    return value


def retry_s(crashes: int) -> float:
    """Return how long after so many crashes, 1 or more, the next attempt waits."""
    return math.ldexp(1.0, min(crashes, 7) - 1)


def _at_most(asked: int, share: int, limit: int, field: str) -> int:
    if not 0 <= asked <= limit:
        raise FieldInvalidError(
            field, asked, f"be 0 to {limit}, which is all this machine has; 0: {share}"
        )
    return asked or share
