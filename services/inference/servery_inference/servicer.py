"""The RPCs of `inference.GRPCInferenceService`: parse, call, render."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from importlib.metadata import version as release_of
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.endpoint import InferEndpoint
from servery_inference.repository import IndexEntry, ModelNotServedError, Repository
from servery_inference.request import Timing, shown
from servery_inference.signature import Tensor
from servery_rpc.errors import PermissionDeniedError, UnsupportedError
from servery_rpc.identity import Caller, Verb, caller_of
from servery_rpc.names import DEFAULT_TENANT, ModelName

SERVICE: Final = "inference.GRPCInferenceService"
MODEL_HEADER: Final = "x-servery-model"
"""Metadata in which the gateway says for which model it let the call through."""

TIMING_HEADER: Final = "servery-timing"
"""`1` in the metadata of a call asks for the same key in the trailing metadata: microseconds."""

PLATFORM: Final = "onnxruntime_onnx"
EXTENSIONS: Final = ("binary_tensor_data", "parameters")
"""Extensions of the protocol that are really there."""

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class InferenceServicer:
    """Serves the models of a repository.

    Args:
        repository: The models.
        is_ready: Whether the models to begin with are settled and the server does not drain.
    """

    def __init__(self, repository: Repository, is_ready: Callable[[], bool]) -> None:
        self._repository = repository
        self._endpoint = InferEndpoint(repository)
        self._is_ready = is_ready

    def register(self, server: grpc.aio.Server) -> None:
        """Add the handlers of all RPCs of the contract to `server`."""
        methods = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
        handlers = {method.name: self._handler(method) for method in methods}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])

    async def ModelInfer(self, request: bytes, context: Context) -> bytes:
        """See grpc_service.proto. Takes and gives serialized messages."""
        decoded = await self._endpoint.decode(request, partial(_authorize, context, ("infer",)))
        answer = await self._endpoint.infer(decoded)
        if _asks(context, TIMING_HEADER):
            context.set_trailing_metadata(((TIMING_HEADER, _timing(answer.timing)),))
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
            name="servery", version=release_of("servery"), extensions=EXTENSIONS
        )

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        """See grpc_service.proto."""
        _authorize(context, ("infer", "read"), request.name)
        try:
            self._repository.find(request.name, request.version)
        except ModelNotServedError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        """See grpc_service.proto."""
        _authorize(context, ("infer", "read"), request.name)
        signature = self._repository.find(request.name, request.version).signature
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[str(number) for number in self._repository.ready_versions(request.name)],
            platform=PLATFORM,
            inputs=[_tensor_to_proto(tensor) for tensor in signature.inputs.values()],
            outputs=[_tensor_to_proto(tensor) for tensor in signature.outputs.values()],
        )

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        """See grpc_service.proto."""
        if request.repository_name:
            raise UnsupportedError("RepositoryIndex with a repository_name")
        caller = caller_of(context)
        return pb.RepositoryIndexResponse(
            models=[
                _entry_to_proto(entry)
                for entry in self._repository.index()
                if _may(caller, ("infer", "read"), entry.model)
                and (entry.state == "READY" or not request.ready)
            ]
        )

    def _handler(self, method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
        implemented: Mapping[str, Callable[[Any, Any], Awaitable[Any]]] = {
            "ServerLive": self.ServerLive,
            "ServerReady": self.ServerReady,
            "ServerMetadata": self.ServerMetadata,
            "ModelReady": self.ModelReady,
            "ModelMetadata": self.ModelMetadata,
            "RepositoryIndex": self.RepositoryIndex,
        }
        if method.name == "ModelInfer":
            return grpc.unary_unary_rpc_method_handler(self.ModelInfer)
        request = message_factory.GetMessageClass(method.input_type)
        response = message_factory.GetMessageClass(method.output_type)
        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(
                partial(_unsupported_stream, method.name),
                request.FromString,
                response.SerializeToString,
            )
        return grpc.unary_unary_rpc_method_handler(
            implemented.get(method.name, partial(_unsupported, method.name)),
            request.FromString,
            response.SerializeToString,
        )


async def _unsupported(method: str, *_: Any) -> Any:
    raise UnsupportedError(method)


async def _unsupported_stream(method: str, *_: Any) -> AsyncIterator[Any]:
    raise UnsupportedError(method)
    yield  # An RPC that streams is a generator.


def _asks(context: Context, header: str) -> bool:
    metadata = context.invocation_metadata() or ()
    return any(key == header and value in ("1", "true") for key, value in metadata)


def _timing(timing: Timing) -> str:
    """Render as `Server-Timing` in HTTP does, in microseconds."""
    parts = {
        "queue": timing.queue_ns,
        "compute_input": timing.compute_input_ns,
        "compute_infer": timing.compute_infer_ns,
        "compute_output": timing.compute_output_ns,
    }
    return ", ".join(f"{name};us={ns / 1000:.1f}" for name, ns in parts.items())


def _authorize(context: Context, verbs: tuple[Verb, ...], model: str) -> None:
    """Refuse unless the caller may do one of `verbs` to the model of this name on the wire.

    Raises:
        PermissionDeniedError: It may not, or the gateway let it through for another model.
    """
    metadata = context.invocation_metadata() or ()
    elsewhere = any(key == MODEL_HEADER and value != model for key, value in metadata)
    if elsewhere or not _may(caller_of(context), verbs, model):
        raise PermissionDeniedError(verbs[0], str(_resource(shown(model))))


def _may(caller: Caller, verbs: tuple[Verb, ...], model: str) -> bool:
    resource = _resource(model)
    return any(caller.may(verb, resource.tenant, resource.model) for verb in verbs)


def _resource(model: str) -> ModelName:
    """What a name on the wire names: the opposite of `ModelName.wire_name`, for any text."""
    tenant, dot, name = model.partition(".")
    return ModelName(tenant, name) if dot else ModelName(DEFAULT_TENANT, model)


def _tensor_to_proto(tensor: Tensor) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype.wire, shape=tensor.shape
    )


def _entry_to_proto(entry: IndexEntry) -> pb.RepositoryIndexResponse.ModelIndex:
    version = "" if entry.version is None else str(entry.version)
    return pb.RepositoryIndexResponse.ModelIndex(
        name=entry.model, version=version, state=entry.state, reason=entry.reason
    )
