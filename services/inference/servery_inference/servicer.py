"""The RPCs of `inference.GRPCInferenceService`: parse, call, render."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from importlib.metadata import version as release_of
from typing import Final

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.access import (
    TIMING_HEADER,
    VISIBLE,
    Context,
    asks,
    authorize,
    authorize_infer,
    caller,
    deadline_of,
    may,
    timing_text,
)
from servery_inference.endpoint import InferEndpoint
from servery_inference.in_flight import InFlight
from servery_inference.metering import USAGE_HEADER, Tally, is_metered
from servery_inference.repository import ModelNotServedError, Repository
from servery_inference.rpcs import Handlers
from servery_inference.signature import Tensor
from servery_inference.statistics_wire import statistics_of, to_proto
from servery_inference.stream import answer_stream

FAILURE_HEADER: Final = "triton_grpc_error"
"""`true` in the metadata of a stream: a failure is its status, and ends it."""

EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "sequence",
    "statistics",
    "trace",
)
"""Extensions of the protocol that are there, whatever the settings."""


class InferenceServicer:
    """Serves the models of a repository.

    Args:
        repository: The models.
        endpoint: Answers requests to them.
        is_ready: Whether the models to begin with are settled and the server does not drain.
        in_flight: Counts what is being answered.
        extensions: Names of what this server can beyond the protocol.
    """

    def __init__(
        self,
        repository: Repository,
        endpoint: InferEndpoint,
        is_ready: Callable[[], bool],
        in_flight: InFlight,
        extensions: Sequence[str],
    ) -> None:
        self._repository = repository
        self._extensions = extensions
        self._endpoint = endpoint
        self._is_ready = is_ready
        self._in_flight = in_flight

    def handlers(self) -> Handlers:
        """Return the methods by their names in the contract."""
        return {
            "ServerLive": self.ServerLive,
            "ServerReady": self.ServerReady,
            "ServerMetadata": self.ServerMetadata,
            "ModelReady": self.ModelReady,
            "ModelMetadata": self.ModelMetadata,
            "ModelInfer": self.ModelInfer,
            "ModelStreamInfer": self.ModelStreamInfer,
            "ModelStatistics": self.ModelStatistics,
        }

    async def ModelInfer(self, request: bytes, context: Context) -> bytes:
        """See grpc_service.proto. Takes and gives serialized messages."""
        decoded = await self._endpoint.decode(request, partial(authorize_infer, context))
        with self._in_flight.place(context):
            answer = await self._endpoint.infer(decoded, deadline_of(context))
        trailing = []
        if is_metered(context):
            tally = Tally()
            tally.add(answer)
            trailing.append((USAGE_HEADER, str(tally)))
        if asks(context, TIMING_HEADER):
            trailing.append((TIMING_HEADER, timing_text(answer.timing)))
        if trailing:
            context.set_trailing_metadata(trailing)
        return await self._endpoint.encode(decoded, answer)

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: Context
    ) -> pb.ServerLiveResponse:
        """See grpc_service.proto."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        """See grpc_service.proto."""
        return pb.ServerReadyResponse(ready=self._is_ready())

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        """See grpc_service.proto."""
        return pb.ServerMetadataResponse(
            name="servery", version=release_of("servery"), extensions=self._extensions
        )

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        """See grpc_service.proto."""
        authorize(context, VISIBLE, request.name)
        try:
            self._repository.find(request.name, request.version)
        except ModelNotServedError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        """See grpc_service.proto."""
        authorize(context, VISIBLE, request.name)
        servable = self._repository.find(request.name, request.version)
        signature = servable.signature
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[str(number) for number in self._repository.ready_versions(request.name)],
            platform=servable.config.platform,
            inputs=[_tensor_to_proto(tensor) for tensor in signature.inputs.values()],
            outputs=[_tensor_to_proto(tensor) for tensor in signature.outputs.values()],
        )

    async def ModelStreamInfer(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """See grpc_service.proto. Takes and gives serialized messages."""
        tally = Tally()
        answers = answer_stream(
            requests,
            self._endpoint,
            partial(authorize_infer, context),
            deadline=deadline_of(context),
            ends_on_failure=asks(context, FAILURE_HEADER),
            place=partial(self._in_flight.place, context),
            tally=tally,
        )
        try:
            async with aclosing(answers):
                async for answer in answers:
                    yield answer
        finally:
            if is_metered(context):
                context.set_trailing_metadata(((USAGE_HEADER, str(tally)),))

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        """See grpc_service.proto."""
        if request.name:
            authorize(context, VISIBLE, request.name)
        who = caller(context)
        found = [
            servable
            for servable in statistics_of(self._repository, request.name, request.version)
            if may(who, VISIBLE, servable.model)
        ]
        return pb.ModelStatisticsResponse(model_stats=[to_proto(servable) for servable in found])


def _tensor_to_proto(tensor: Tensor) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype.wire, shape=tensor.shape
    )
