"""Streams that break off go on behind the last thing that was heard."""

from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from servery import Client
from servery.errors import ApiError
from servery.trainer.v1 import training_pb2 as pb

TOKEN = ".".join("abc")
NAME = "tenants/default/trainingJobs/0123456789abcdef0123456789abcdef"


class Breaking:
    """A trainer that tells an event a call, then breaks off with `code`, but not the third."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self.code = code
        self.tokens: list[str] = []

    def watch(
        self, request: pb.WatchTrainingJobRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchTrainingJobResponse]:
        self.tokens.append(request.resume_token)
        number = len(self.tokens)
        yield pb.WatchTrainingJobResponse(
            resume_token=str(number), progress=pb.Progress(epoch=number)
        )
        if number < 3:
            context.abort(self.code, "Stream removed")


def epochs(service: Breaking) -> list[int]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    handler = grpc.unary_stream_rpc_method_handler(
        service.watch,
        pb.WatchTrainingJobRequest.FromString,
        pb.WatchTrainingJobResponse.SerializeToString,
    )
    name = pb.DESCRIPTOR.services_by_name["TrainingService"].full_name
    server.add_registered_method_handlers(name, {"WatchTrainingJob": handler})
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}", token=TOKEN) as servery:
            return [event.progress.epoch for event in servery.jobs.watch(NAME)]
    finally:
        server.stop(0)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
def test_a_stream_goes_on_where_it_broke_off(code: grpc.StatusCode) -> None:
    service = Breaking(code)
    assert epochs(service) == [1, 2, 3]
    assert service.tokens == ["", "1", "2"]


def test_what_the_server_refuses_is_not_asked_again() -> None:
    service = Breaking(grpc.StatusCode.NOT_FOUND)
    with pytest.raises(ApiError):
        epochs(service)
    assert service.tokens == [""]
