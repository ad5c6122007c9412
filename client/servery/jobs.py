"""Training jobs: start them, follow them, stop them, do them again."""

import uuid
from collections.abc import Iterator
from typing import Any, Final

from servery.connection import Connection
from servery.streams import resumed
from servery.trainer.v1 import training_pb2 as pb
from servery.trainer.v1 import training_pb2_grpc as pb_grpc

FINAL: Final = (
    pb.TRAINING_JOB_STATE_SUCCEEDED,
    pb.TRAINING_JOB_STATE_FAILED,
    pb.TRAINING_JOB_STATE_CANCELLED,
)
"""States that a job does not leave."""

_CHECK_TIMEOUT_S: Final = 600.0  # The whole dataset is checked before a job is accepted.


class Jobs:
    """The training jobs of the caller's tenant."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = pb_grpc.TrainingServiceStub(connection.channel)

    def create(self, spec: pb.TrainingSpec, terms: pb.TrainingJob | None = None) -> pb.TrainingJob:
        """Queue a job; data that cannot be trained on is refused here.

        Args:
            spec: What to train.
            terms: How to run it: a job of which all is taken over but the spec.
        """
        job = pb.TrainingJob()
        if terms is not None:
            job.CopyFrom(terms)
        job.spec.CopyFrom(spec)
        request = pb.CreateTrainingJobRequest(
            parent=self._connection.tenant, training_job=job, request_id=str(uuid.uuid4())
        )
        return self._connection.unary(
            self._stub.CreateTrainingJob, request, timeout_s=_CHECK_TIMEOUT_S
        ).training_job

    def get(self, name: str) -> pb.TrainingJob:
        """Return the job of this resource name."""
        return self._connection.unary(
            self._stub.GetTrainingJob, pb.GetTrainingJobRequest(name=name)
        ).training_job

    def list(self) -> Iterator[pb.TrainingJob]:
        """Yield every job, the newest first."""
        request = pb.ListTrainingJobsRequest(parent=self._connection.tenant)
        while True:
            page = self._connection.unary(self._stub.ListTrainingJobs, request)
            yield from page.training_jobs
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def cancel(self, name: str) -> pb.TrainingJob:
        """Ask a job to stop; it reaches CANCELLED within seconds."""
        return self._connection.unary(
            self._stub.CancelTrainingJob, pb.CancelTrainingJobRequest(name=name)
        ).training_job

    def watch(self, name: str) -> Iterator[pb.WatchTrainingJobResponse]:
        """Yield everything the job did and does until it has ended.

        A connection that breaks is made again and the stream goes on behind the last event.

        Raises:
            ApiError: There is no such job, or the server was away for a minute.
        """
        request = pb.WatchTrainingJobRequest(name=name)
        yield from resumed(self._connection, self._stub.WatchTrainingJob, request)

    def logs(self, name: str, *, follow: bool = False) -> Iterator[bytes]:
        """Yield what the process of the job wrote; with `follow`, until the job has ended.

        Raises:
            ApiError: There is no such job, or the server was away for a minute.
        """
        request = pb.StreamTrainingJobLogsRequest(name=name, follow=follow)
        for response in resumed(self._connection, self._stub.StreamTrainingJobLogs, request):
            yield response.chunk

    def resume(self, name: str) -> pb.TrainingJob:
        """Queue a job that goes on from the last checkpoint of one that was cancelled or failed.

        A deadline that has passed is not taken over.
        """
        job = self.get(name)
        terms = _terms(job, resume_from=name, without_publication=job.without_publication)
        return self.create(job.spec, terms)

    def reproduce(self, name: str) -> pb.TrainingJob:
        """Queue a job that does again what another did, and publishes nothing.

        Raises:
            ValueError: The other job has not succeeded, or does not tell its weights.
        """
        job = self.get(name)
        if not job.result.weights_sha256:
            raise ValueError(f"{name} tells no weights to compare with; train it again first")
        return self.create(job.spec, _terms(job, without_publication=True))


def same_weights(one: pb.TrainingJob, other: pb.TrainingJob) -> bool:
    """Tell whether two jobs that succeeded trained the same weights, to the bit."""
    return one.result.weights_sha256 == other.result.weights_sha256 != ""


def _terms(job: pb.TrainingJob, **others: Any) -> pb.TrainingJob:
    """Return how `job` was run, as far as that decides its outcome."""
    return pb.TrainingJob(resources=job.resources, priority=job.priority, **others)
