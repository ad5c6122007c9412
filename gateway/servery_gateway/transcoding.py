"""JSON over HTTP for our own services, by the `google.api.http` of their contracts. Pure.

Envoy makes the gRPC call out of a JSON request before anything is decided about it, so that one set
of rules holds for both. Inference is never among the services: its tensors have no place in JSON.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from google.rpc import error_details_pb2

from servery_gateway.extensions import HTTP_FILTERS
from servery_gateway.methods import INFERENCE, Method, contracts

JSON_PREFIX: Final = "/v1/"
"""What the path of a JSON request begins with, and no other."""

ORIGINAL_PATH: Final = "x-envoy-original-path"
"""Header in which Envoy keeps the path of a JSON request; nobody else can set it."""

_MAX_BODY_BYTES: Final = 4 << 20
_MAX_RESPONSE_BYTES: Final = 16 << 20


def transcoder(methods: Sequence[Method]) -> Mapping[str, Any]:
    """Return the filter that makes calls of `methods` out of JSON requests."""
    called = {method.service for method in methods}
    ours = [file for upstream, file in contracts() if upstream != INFERENCE]
    services = {
        service.full_name: file
        for file in ours
        for service in file.services_by_name.values()
        if service.full_name in called
    }
    files = [file for file in ours if file in services.values()]
    return {
        "@type": f"{HTTP_FILTERS}.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "proto_descriptor_bin": base64.b64encode(_described(files)).decode(),
        "services": sorted(services),
        "convert_grpc_status": True,
        "request_validation_options": {"reject_unknown_query_parameters": True},
        "print_options": {"stream_newline_delimited": True},
        "max_request_body_size": _MAX_BODY_BYTES,
        "max_response_body_size": _MAX_RESPONSE_BYTES,
    }


def _described(files: Sequence[FileDescriptor]) -> bytes:
    """The files, the details that errors have, and all they import, each after its imports."""
    described = descriptor_pb2.FileDescriptorSet()
    seen: set[str] = set()

    def add(file: Any) -> None:
        if file.name not in seen:
            seen.add(file.name)
            for imported in file.dependencies:
                add(imported)
            file.CopyToProto(described.file.add())

    for file in (*files, error_details_pb2.DESCRIPTOR):
        add(file)
    return described.SerializeToString(deterministic=True)
