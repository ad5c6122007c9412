"""The public listener of Envoy: how it speaks, what it limits, and how it words refusals."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from servery_gateway.access_log import USAGE_HEADER
from servery_gateway.address import HostAddress
from servery_gateway.extensions import (
    ADS,
    ALLOWED_HEADER,
    CALLER_HEADER,
    CONTROL_PLANE,
    DOOR_HEADER,
    EXTENSIONS,
    TENANT_HEADER,
    typed,
)
from servery_gateway.filters import http_filters
from servery_gateway.methods import Method
from servery_gateway.refusals import refusals
from servery_gateway.routes import ROUTES_NAME
from servery_gateway.snapshot import Resource

LISTENER_NAME: Final = "public"
CERTIFICATE_NAME: Final = "public"
CLIENT_CA_NAME: Final = "client-ca"

_WINDOW_BYTES: Final = 64 << 20
"""Largest first message of an inference call: it is held in memory until its model is known."""

_LOG_BUFFER_BYTES: Final = 16 << 20
"""What each worker of Envoy keeps of its access log while the control plane is away, some 16,000
calls; more are lost to usage, which `access_logs.grpc_access_log.logs_dropped` tells."""


def public_listener(
    address: HostAddress,
    methods: Sequence[Method],
    *,
    tls: bool,
    asks_clients: bool,
) -> Resource:
    """Return the listener.

    Args:
        address: Where it listens.
        methods: Every RPC there is; no other is let through.
        tls: Whether it shows the certificate `CERTIFICATE_NAME`.
        asks_clients: Whether the certificates of clients that have one are checked against
            `CLIENT_CA_NAME`.
    """
    chain: dict[str, Any] = {
        "filters": [typed("envoy.http_connection_manager", _connection_manager(methods))]
    }
    if tls:
        chain["transport_socket"] = typed(
            "envoy.transport_sockets.tls",
            {
                "@type": f"{EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "alpn_protocols": ["h2", "http/1.1"],
                    "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                    "tls_certificate_sds_secret_configs": [
                        {"name": CERTIFICATE_NAME, "sds_config": ADS}
                    ],
                    **(
                        {
                            "validation_context_sds_secret_config": {
                                "name": CLIENT_CA_NAME,
                                "sds_config": ADS,
                            }
                        }
                        if asks_clients
                        else {}
                    ),
                },
            },
        )
    return {
        "name": LISTENER_NAME,
        "address": {"socket_address": {"address": address.host, "port_value": address.port}},
        # Else a second Envoy shares the port unnoticed; the kernel then no longer spreads
        # connections over the workers, so Envoy does.
        "enable_reuse_port": False,
        "connection_balance_config": {"exact_balance": {}},
        "per_connection_buffer_limit_bytes": 1 << 20,
        "filter_chains": [chain],
    }


def _connection_manager(methods: Sequence[Method]) -> dict[str, Any]:
    network = f"{EXTENSIONS}.filters.network"
    mutation = f"{EXTENSIONS}.http.early_header_mutation.header_mutation.v3.HeaderMutation"
    return {
        "@type": f"{network}.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "public",
        "codec_type": "AUTO",
        "rds": {"route_config_name": ROUTES_NAME, "config_source": ADS},
        "early_header_mutation_extensions": [
            typed(
                "strip-platform-headers",
                {
                    "@type": mutation,
                    "mutations": [
                        {"remove_on_match": {"key_matcher": {"prefix": prefix}}}
                        for prefix in ("x-servery-", "x-envoy-")
                    ]
                    + [
                        {
                            "append": {
                                "header": {"key": DOOR_HEADER, "value": "%REQ(content-type)%"},
                                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                            }
                        }
                    ],
                },
            )
        ],
        "http_filters": http_filters(methods),
        "access_log": [_usage_log()],
        "local_reply_config": {"mappers": refusals()},
        "http2_protocol_options": {
            "max_concurrent_streams": 100,
            "initial_stream_window_size": _WINDOW_BYTES,
            "initial_connection_window_size": 2 * _WINDOW_BYTES,
        },
        "common_http_protocol_options": {
            "idle_timeout": "3600s",
            "headers_with_underscores_action": "REJECT_REQUEST",
        },
        "use_remote_address": True,
        "normalize_path": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "preserve_external_request_id": True,
        "server_name": "servery",
        "request_headers_timeout": "10s",
        "stream_idle_timeout": "300s",
        "drain_timeout": "5s",
    }


def _usage_log() -> Mapping[str, Any]:
    """How the control plane is told of every call, at its end."""
    told = ["grpc-status", USAGE_HEADER]
    return typed(
        "envoy.access_loggers.http_grpc",
        {
            "@type": f"{EXTENSIONS}.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
            "common_config": {
                "log_name": "usage",
                "transport_api_version": "V3",
                "grpc_service": {"envoy_grpc": {"cluster_name": CONTROL_PLANE}},
                "buffer_flush_interval": "0.2s",
                "buffer_size_bytes": _LOG_BUFFER_BYTES,
            },
            "additional_request_headers_to_log": [TENANT_HEADER, CALLER_HEADER, ALLOWED_HEADER],
            "additional_response_headers_to_log": told,
            "additional_response_trailers_to_log": told,
        },
    )
