"""The methods of the contract, from whichever modules implement them, as handlers of gRPC."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from servery.inference.v1 import grpc_service_pb2 as pb

SERVICE: Final = "inference.GRPCInferenceService"
METHODS: Final[Mapping[str, MethodDescriptor]] = pb.DESCRIPTOR.services_by_name[
    "GRPCInferenceService"
].methods_by_name

BYTES_TO_BYTES: Final = {"ModelInfer", "ModelStreamInfer"}
"""Methods that take and give serialized messages."""

Handlers: TypeAlias = Mapping[str, Callable[[Any, Any], Any]]
"""Methods by their names in the contract. Each takes a message and a `Context`."""


def register(handlers: Handlers, server: grpc.aio.Server) -> None:
    """Add `handlers` to `server`."""
    guarded = {name: _handler(name, handle) for name, handle in handlers.items()}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, guarded)])


def _handler(name: str, handle: Callable[[Any, Any], Any]) -> grpc.RpcMethodHandler[Any, Any]:
    method = METHODS[name]
    make = (
        grpc.stream_stream_rpc_method_handler
        if method.client_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    if name in BYTES_TO_BYTES:
        return make(handle)
    request = message_factory.GetMessageClass(method.input_type)
    response = message_factory.GetMessageClass(method.output_type)
    return make(handle, request.FromString, response.SerializeToString)
