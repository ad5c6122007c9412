"""Server reflection, v1 and v1alpha, over every pool our descriptors live in.

grpcio-reflection ships v1alpha only. The two versions differ in nothing but the package name, so
one servicer answers both.
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

_V1ALPHA: Final = "grpc.reflection.v1alpha"
_V1: Final = "grpc.reflection.v1"


class _Pools:
    """The lookups reflection makes, tried in one pool after the other."""

    def __init__(self, pools: Sequence[descriptor_pool.DescriptorPool]) -> None:
        self._pools = pools

    def __getattr__(self, lookup: str) -> Callable[..., Any]:
        def first(*key: Any) -> Any:
            for pool in self._pools:
                with contextlib.suppress(KeyError):
                    return getattr(pool, lookup)(*key)
            raise KeyError(key)

        return first


def add_reflection(
    server: grpc.aio.Server,
    services: Sequence[str],
    pools: Sequence[descriptor_pool.DescriptorPool] = (),
) -> None:
    """Let `server` describe `services` (full names) to tools such as grpcurl.

    Args:
        server: Where to register.
        services: Full names, such as `servery.registry.v1.RegistryService`.
        pools: Private pools to look in after the default one.
    """
    servicer = reflection.aio.ReflectionServicer(
        sorted({*services, f"{_V1}.ServerReflection", f"{_V1ALPHA}.ServerReflection"}),
        pool=_Pools((descriptor_pool.Default(), v1_pool(), *pools)),
    )
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                f"{_V1}.ServerReflection", {"ServerReflectionInfo": handler}
            )
        ]
    )


def v1_pool() -> descriptor_pool.DescriptorPool:
    """Return a pool that describes v1 itself, derived from v1alpha."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = "grpc/reflection/v1/reflection.proto", _V1
    for field in (f for message in file.message_type for f in message.field if f.type_name):
        field.type_name = field.type_name.replace(f".{_V1ALPHA}.", f".{_V1}.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(f".{_V1ALPHA}.", f".{_V1}.")
        method.output_type = method.output_type.replace(f".{_V1ALPHA}.", f".{_V1}.")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool
