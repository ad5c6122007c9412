"""Which process answers which call, and what browsers may do. Pure."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from servery_gateway.methods import INFERENCE, INFERENCE_HTTP, JWKS_PATH, Method
from servery_gateway.snapshot import Resource

ROUTES_NAME: Final = "public"

_GRPC: Final = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
"""Also gRPC-Web, which the route is looked up for before it is translated."""

_GRPC_HEADERS: Final = "grpc-status,grpc-message,grpc-status-details-bin,x-request-id"
_CORS_POLICY: Final = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy"


def route_table(
    methods: Sequence[Method],
    jwks: Sequence[Mapping[str, str]],
    origins: Sequence[str],
    *,
    rest: bool,
) -> Resource:
    """Return the routes of the public listener.

    Args:
        methods: Every RPC there is.
        jwks: The public keys that tokens are verified with, as JSON Web Keys.
        origins: From where pages in browsers may call, such as `https://app.example.org`.
        rest: Whether inference also answers HTTP.
    """
    host: dict[str, Any] = {
        "name": ROUTES_NAME,
        "domains": ["*"],
        "routes": [
            _keys(jwks),
            *(_route(method) for method in methods if not method.rule.denied),
            *([_rest()] if rest else []),
        ],
    }
    if origins:
        # What a browser asks before it calls is answered by a filter, for which a route must be.
        host["routes"].insert(0, _preflight(methods))
        host["typed_per_filter_config"] = {"envoy.filters.http.cors": _cors(origins)}
    return {"name": ROUTES_NAME, "virtual_hosts": [host]}


def _keys(jwks: Sequence[Mapping[str, str]]) -> Resource:
    body = json.dumps({"keys": list(jwks)}, sort_keys=True)
    return {
        "match": {"path": JWKS_PATH},
        "direct_response": {"status": 200, "body": {"inline_string": body}},
        "response_headers_to_add": [
            {
                "header": {"key": "content-type", "value": "application/json"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            },
            {"header": {"key": "cache-control", "value": "max-age=60"}},
        ],
    }


def _preflight(methods: Sequence[Method]) -> Resource:
    asks = [{"name": ":method", "string_match": {"exact": "OPTIONS"}}]
    return {
        "match": {"prefix": "/", "headers": asks},
        "route": {"cluster": methods[0].upstream},
    }


def _cors(origins: Sequence[str]) -> Resource:
    return {
        "@type": _CORS_POLICY,
        "allow_origin_string_match": [{"exact": origin} for origin in origins],
        "allow_methods": "GET,POST",
        "allow_headers": "authorization,content-type,grpc-timeout,x-grpc-web,x-user-agent,"
        "x-request-id,inference-header-content-length",
        "expose_headers": f"{_GRPC_HEADERS},inference-header-content-length",
        "max_age": "600",
    }


def _rest() -> Resource:
    """Inference over HTTP; which of it may be called is the script's matter."""
    return {
        "match": {"prefix": "/v2"},
        "route": {"cluster": INFERENCE_HTTP, "timeout": "300s"},
    }


def _route(method: Method) -> Resource:
    # With max_stream_duration, `timeout` does not count. Without a deadline of the caller the
    # first value holds; its deadline may be as long as the second.
    unbounded = method.client_streaming or method.server_streaming
    default, longest = ("3600s", "3600s") if unbounded else ("60s", "300s")
    action: dict[str, Any] = {
        "cluster": method.upstream,
        "timeout": "0s",
        "max_stream_duration": {
            "max_stream_duration": default,
            "grpc_timeout_header_max": longest,
        },
    }
    if method.server_streaming:
        action["idle_timeout"] = "0s"  # A watch may have nothing to say for long.
    if not unbounded:
        # Only what no server has begun to do; inference has no effects, so also what one refused.
        retry_on = "connect-failure,refused-stream"
        action["retry_policy"] = {
            "retry_on": f"{retry_on},unavailable" if method.upstream == INFERENCE else retry_on,
            "num_retries": 2,
            "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
        }
    return {"match": {"path": method.path, "headers": [_GRPC]}, "route": action}
