"""The public listener of Envoy: what every request passes before it is routed."""

import base64
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

from google.protobuf import descriptor_pb2

from servery.inference.v1 import grpc_service_pb2, model_config_pb2
from servery_gateway.address import HostAddress
from servery_gateway.keys import ApiKeyInvalidError
from servery_gateway.methods import Method
from servery_gateway.snapshot import Resource
from servery_gateway.tokens import AUDIENCE, ISSUER
from servery_rpc.errors import to_status
from servery_rpc.identity import CLAIMS_HEADER

LISTENER_NAME: Final = "public"
ROUTES_NAME: Final = "public"
CERTIFICATE_NAME: Final = "public"
REVOKED_KEYS_NAME: Final = "revoked-keys"
ADS: Final = {"ads": {}, "resource_api_version": "V3"}

_EXTENSIONS: Final = "type.googleapis.com/envoy.extensions"
_HTTP_FILTERS: Final = f"{_EXTENSIONS}.filters.http"
_RBAC: Final = f"{_HTTP_FILTERS}.rbac.v3.RBAC"
_TOKEN: Final = "envoy.filters.http.jwt_authn"  # noqa: S105 a filter

_CLOCK_SKEW_S: Final = 5
_WINDOW_BYTES: Final = 64 << 20
"""Largest first message of an inference call: it is held in memory until its model is known."""


def public_listener(
    address: HostAddress,
    methods: Sequence[Method],
    jwks: Sequence[Mapping[str, str]],
    *,
    tls: bool,
) -> Resource:
    """Return the listener.

    Args:
        address: Where it listens.
        methods: Every RPC there is; no other is let through.
        jwks: The public keys that tokens are verified with, as JSON Web Keys.
        tls: Whether it shows the certificate `CERTIFICATE_NAME`.
    """
    chain: dict[str, Any] = {
        "filters": [_filter("envoy.http_connection_manager", _connection_manager(methods, jwks))]
    }
    if tls:
        chain["transport_socket"] = _filter(
            "envoy.transport_sockets.tls",
            {
                "@type": f"{_EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "alpn_protocols": ["h2"],
                    "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                    "tls_certificate_sds_secret_configs": [
                        {"name": CERTIFICATE_NAME, "sds_config": ADS}
                    ],
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


def deny_keys(names: Sequence[str]) -> Resource:
    """Return the filter that refuses the tokens of these API keys, given by resource name."""
    rules: dict[str, Any] = {"action": "DENY", "policies": {}}
    if names:
        rules["policies"]["revoked"] = {
            "permissions": [{"any": True}],
            "principals": [
                {"sourced_metadata": _metadata(_TOKEN, "claims", "sub", exact=name)}
                for name in names
            ],
        }
    return _filter(REVOKED_KEYS_NAME, {"@type": _RBAC, "rules": rules})


def _connection_manager(
    methods: Sequence[Method], jwks: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    network = f"{_EXTENSIONS}.filters.network"
    mutation = f"{_EXTENSIONS}.http.early_header_mutation.header_mutation.v3.HeaderMutation"
    return {
        "@type": f"{network}.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "public",
        "codec_type": "HTTP2",
        "rds": {"route_config_name": ROUTES_NAME, "config_source": ADS},
        "early_header_mutation_extensions": [
            _filter(
                "strip-platform-headers",
                {
                    "@type": mutation,
                    "mutations": [
                        {"remove_on_match": {"key_matcher": {"prefix": prefix}}}
                        for prefix in ("x-servery-", "x-envoy-")
                    ],
                },
            )
        ],
        "http_filters": _filters(methods, jwks),
        "local_reply_config": {"mappers": [_bad_token(), _revoked_key()]},
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


def _filters(
    methods: Sequence[Method], jwks: Sequence[Mapping[str, str]]
) -> list[Mapping[str, Any]]:
    """The chain, in its order: who is it, is its key revoked, which model, may it, enforce."""
    return [
        _filter(_TOKEN, _authentication(methods, jwks)),
        {
            "name": REVOKED_KEYS_NAME,
            "config_discovery": {"config_source": ADS, "type_urls": [_RBAC]},
        },
        _filter("envoy.filters.http.grpc_field_extraction", _extraction(methods)),
        _filter(
            "envoy.filters.http.lua",
            {
                "@type": f"{_HTTP_FILTERS}.lua.v3.Lua",
                "default_source_code": {"inline_string": _authorization(methods)},
            },
        ),
        _filter("envoy.filters.http.rbac", _enforcement(methods)),
        _filter(
            "envoy.filters.http.router",
            {"@type": f"{_HTTP_FILTERS}.router.v3.Router", "suppress_envoy_headers": True},
        ),
    ]


def _authentication(
    methods: Sequence[Method], jwks: Sequence[Mapping[str, str]]
) -> Mapping[str, Any]:
    # No cache of verified tokens: it would outlive the keys they were signed with.
    provider = {
        "issuer": ISSUER,
        "audiences": [AUDIENCE],
        "require_expiration": True,
        "clock_skew_seconds": _CLOCK_SKEW_S,
        "local_jwks": {"inline_string": json.dumps({"keys": list(jwks)}, sort_keys=True)},
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        "forward": False,
        "forward_payload_header": CLAIMS_HEADER,
        "payload_in_metadata": "claims",
    }
    return {
        "@type": f"{_HTTP_FILTERS}.jwt_authn.v3.JwtAuthentication",
        "providers": {"servery": provider},
        "rules": [
            *({"match": {"path": method.path}} for method in methods if method.rule.public),
            {"match": {"prefix": "/"}, "requires": {"provider_name": "servery"}},
        ],
    }


def _extraction(methods: Sequence[Method]) -> Mapping[str, Any]:
    described = descriptor_pb2.FileDescriptorSet()
    for file in (model_config_pb2.DESCRIPTOR, grpc_service_pb2.DESCRIPTOR):
        file.CopyToProto(described.file.add())
    packed = described.SerializeToString(deterministic=True)
    return {
        "@type": f"{_HTTP_FILTERS}.grpc_field_extraction.v3.GrpcFieldExtractionConfig",
        "descriptor_set": {"inline_bytes": base64.b64encode(packed).decode()},
        "extractions_by_method": {
            f"{method.service}.{method.name}": {
                "request_field_extractions": {method.rule.model_field: {}}
            }
            for method in methods
            if method.rule.model_field
        },
    }


def _authorization(methods: Sequence[Method]) -> str:
    """The script, behind the table of methods it decides by."""
    lines = []
    for method in methods:
        rule = method.rule
        if rule.denied:
            continue
        parts = [f"verbs = {{{', '.join(json.dumps(verb) for verb in rule.verbs)}}}"]
        if rule.model_field:
            parts.append(f"model_field = {json.dumps(rule.model_field)}")
        if rule.public:
            parts.append("public = true")
        lines.append(f"  [{json.dumps(method.path)}] = {{{', '.join(parts)}}},")
    script = files("servery_gateway").joinpath("authorization.lua").read_text("utf-8")
    return "\n".join(["local RULES = {", *lines, "}", "", script])


def _enforcement(methods: Sequence[Method]) -> Mapping[str, Any]:
    anyone = [{"any": True}]
    return {
        "@type": _RBAC,
        "rules": {
            "action": "ALLOW",
            "policies": {
                "public": {
                    "permissions": [
                        {"url_path": {"path": {"exact": method.path}}}
                        for method in methods
                        if method.rule.public
                    ],
                    "principals": anyone,
                },
                "authorized": {
                    "permissions": [
                        {
                            "sourced_metadata": {
                                "metadata_matcher": {
                                    "filter": "servery.authz",
                                    "path": [{"key": "allowed"}],
                                    "value": {"bool_match": True},
                                }
                            }
                        }
                    ],
                    "principals": anyone,
                },
            },
        },
    }


def _bad_token() -> Mapping[str, Any]:
    """How a missing or unacceptable token is answered; Envoy alone says 403 for some of them."""
    return {
        "filter": _denial("response.code_details.startsWith('jwt_authn_access_denied')"),
        "status_code": 401,
        "body_format_override": {
            "text_format_source": {
                "inline_string": "%LOCAL_REPLY_BODY%; send the metadata `authorization: Bearer"
                " {token}` with a token from servery.gateway.v1.AuthService/ExchangeApiKey"
            }
        },
    }


def _revoked_key() -> Mapping[str, Any]:
    """How the live token of a revoked key is answered: as the exchange of the key would be."""
    status = to_status(ApiKeyInvalidError())
    details = base64.b64encode(status.SerializeToString(deterministic=True)).decode()
    return {
        "filter": _denial("response.code_details == 'rbac_access_denied_matched_policy[revoked]'"),
        "status_code": 401,
        "body_format_override": {"text_format_source": {"inline_string": status.message}},
        "headers_to_add": [
            {
                "header": {"key": "grpc-status-details-bin", "value": details},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ],
    }


def _denial(expression: str) -> Mapping[str, Any]:
    """Select the answers of Envoy itself for which a CEL expression holds."""
    config = {
        "@type": f"{_EXTENSIONS}.access_loggers.filters.cel.v3.ExpressionFilter",
        "expression": expression,
    }
    return {"extension_filter": _filter("envoy.access_loggers.extension_filters.cel", config)}


def _metadata(namespace: str, *path: str, exact: str) -> Mapping[str, Any]:
    return {
        "metadata_matcher": {
            "filter": namespace,
            "path": [{"key": key} for key in path],
            "value": {"string_match": {"exact": exact}},
        }
    }


def _filter(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "typed_config": config}
