"""Training jobs: start them, follow them, stop them."""

import time
import uuid
from collections.abc import Iterator
from typing import Final

import grpc

from servery.connection import Connection
from servery.errors import ApiError
from servery.trainer.v1 import training_pb2 as pb
from servery.trainer.v1 import training_pb2_grpc as pb_grpc

FINAL: Final = (
    pb.TRAINING_JOB_STATE_SUCCEEDED,
    pb.TRAINING_JOB_STATE_FAILED,
    pb.TRAINING_JOB_STATE_CANCELLED,
)
"""States that a job does not leave."""

_CHECK_TIMEOUT_S: Final = 600.0  # The whole dataset is checked before a job is accepted.
_RECONNECT_S: Final = 0.5
_GIVE_UP_S: Final = 60.0


class Jobs:
    """The training jobs of the caller's tenant."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = pb_grpc.TrainingServiceStub(connection.channel)

    def create(self, spec: pb.TrainingSpec) -> pb.TrainingJob:
        """Queue a job; data that cannot be trained on is refused here."""
        request = pb.CreateTrainingJobRequest(
            parent=self._connection.tenant,
            training_job=pb.TrainingJob(spec=spec),
            request_id=str(uuid.uuid4()),
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
        heard = time.monotonic()
        while True:
            try:
                for event in self._connection.stream(self._stub.WatchTrainingJob, request):
                    request.resume_token = event.resume_token
                    heard = time.monotonic()
                    yield event
                return
            except ApiError as error:
                away_s = time.monotonic() - heard
                if error.code is not grpc.StatusCode.UNAVAILABLE or away_s > _GIVE_UP_S:
                    raise
                time.sleep(_RECONNECT_S)
