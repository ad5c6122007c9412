"""Write the part of the Envoy API that the gateway uses as one compressed FileDescriptorSet.

Run again for a new Envoy or a new message, in an environment of its own:

    python -m venv build/envoy-api
    build/envoy-api/bin/pip install -r requirements/envoy-api.in
    build/envoy-api/bin/python gateway/make_descriptors.py
"""

import importlib
import zlib
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

OUT = Path(__file__).parent / "servery_gateway" / "envoy_api.zlib"
EXTENSIONS = "envoy.extensions"
MODULES = (
    "envoy.service.accesslog.v3.als_pb2",
    "envoy.service.discovery.v3.ads_pb2",
    "envoy.config.cluster.v3.cluster_pb2",
    "envoy.config.endpoint.v3.endpoint_pb2",
    "envoy.config.listener.v3.listener_pb2",
    "envoy.config.route.v3.route_pb2",
    f"{EXTENSIONS}.access_loggers.filters.cel.v3.cel_pb2",
    f"{EXTENSIONS}.access_loggers.grpc.v3.als_pb2",
    f"{EXTENSIONS}.common.matching.v3.extension_matcher_pb2",
    f"{EXTENSIONS}.filters.common.matcher.action.v3.skip_action_pb2",
    f"{EXTENSIONS}.filters.http.cors.v3.cors_pb2",
    f"{EXTENSIONS}.filters.http.grpc_field_extraction.v3.config_pb2",
    f"{EXTENSIONS}.filters.http.grpc_json_transcoder.v3.transcoder_pb2",
    f"{EXTENSIONS}.filters.http.grpc_web.v3.grpc_web_pb2",
    f"{EXTENSIONS}.filters.http.health_check.v3.health_check_pb2",
    f"{EXTENSIONS}.filters.http.jwt_authn.v3.config_pb2",
    f"{EXTENSIONS}.filters.http.local_ratelimit.v3.local_rate_limit_pb2",
    f"{EXTENSIONS}.filters.http.lua.v3.lua_pb2",
    f"{EXTENSIONS}.filters.http.rbac.v3.rbac_pb2",
    f"{EXTENSIONS}.filters.http.router.v3.router_pb2",
    f"{EXTENSIONS}.filters.network.http_connection_manager.v3.http_connection_manager_pb2",
    f"{EXTENSIONS}.http.early_header_mutation.header_mutation.v3.header_mutation_pb2",
    f"{EXTENSIONS}.retry.host.previous_hosts.v3.previous_hosts_pb2",
    f"{EXTENSIONS}.transport_sockets.tls.v3.tls_pb2",
    f"{EXTENSIONS}.upstreams.http.v3.http_protocol_options_pb2",
    "envoy.type.matcher.v3.http_inputs_pb2",
    "xds.type.matcher.v3.matcher_pb2",
)


def closure(modules: tuple[str, ...]) -> descriptor_pb2.FileDescriptorSet:
    """Return the files of `modules` and all they import, each after its imports, comments cut."""
    files = descriptor_pb2.FileDescriptorSet()
    seen: set[str] = set()

    def add(file: Any) -> None:
        if file.name in seen:
            return
        seen.add(file.name)
        for imported in file.dependencies:
            add(imported)
        copy = files.file.add()
        file.CopyToProto(copy)
        copy.ClearField("source_code_info")

    for module in modules:
        add(importlib.import_module(module).DESCRIPTOR)
    return files


if __name__ == "__main__":
    OUT.write_bytes(zlib.compress(closure(MODULES).SerializeToString(), 9))
