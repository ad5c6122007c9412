"""Studies: searches for the hyperparameters that train the best model."""

import uuid
from collections.abc import Iterator
from typing import Final

from servery.connection import Connection
from servery.streams import resumed
from servery.trainer.v1 import tuning_pb2 as pb
from servery.trainer.v1 import tuning_pb2_grpc as pb_grpc

_CHECK_TIMEOUT_S: Final = 600.0  # The whole dataset is checked before a study is accepted.


class Studies:
    """The studies of the caller's tenant."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = pb_grpc.TuningServiceStub(connection.channel)

    def create(self, study: pb.Study) -> pb.Study:
        """Start a study; a space or data that cannot work is refused here."""
        request = pb.CreateStudyRequest(
            parent=self._connection.tenant, study=study, request_id=str(uuid.uuid4())
        )
        return self._connection.unary(
            self._stub.CreateStudy, request, timeout_s=_CHECK_TIMEOUT_S
        ).study

    def get(self, name: str) -> pb.Study:
        """Return the study of this resource name."""
        return self._connection.unary(self._stub.GetStudy, pb.GetStudyRequest(name=name)).study

    def list(self) -> Iterator[pb.Study]:
        """Yield every study, the newest first."""
        request = pb.ListStudiesRequest(parent=self._connection.tenant)
        while True:
            page = self._connection.unary(self._stub.ListStudies, request)
            yield from page.studies
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def trials(self, name: str) -> Iterator[pb.Trial]:
        """Yield every trial of a study in order, each with its rank."""
        request = pb.ListTrialsRequest(parent=name)
        while True:
            page = self._connection.unary(self._stub.ListTrials, request)
            yield from page.trials
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def cancel(self, name: str) -> pb.Study:
        """Ask a study to stop; its trials are cancelled and nothing is published."""
        return self._connection.unary(
            self._stub.CancelStudy, pb.CancelStudyRequest(name=name)
        ).study

    def watch(self, name: str) -> Iterator[pb.WatchStudyResponse]:
        """Yield how each trial stands, then what happens until the study has ended.

        A connection that breaks is made again and the stream goes on behind the last event.

        Raises:
            ApiError: There is no such study, or the server was away for a minute.
        """
        request = pb.WatchStudyRequest(name=name)
        yield from resumed(self._connection, self._stub.WatchStudy, request)
