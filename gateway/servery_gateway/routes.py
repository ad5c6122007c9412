"""Which process answers which call, and what browsers may do. Pure."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from servery_gateway.extensions import DOOR_HEADER, EXTENSIONS, typed
from servery_gateway.methods import INFERENCE, INFERENCE_HTTP, JWKS_PATH, Method
from servery_gateway.model_routes import DEFAULT_POOL, ModelRoute
from servery_gateway.snapshot import Resource

ROUTES_NAME: Final = "public"

_GRPC: Final = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
"""Also gRPC-Web, which the route is looked up for before it is translated."""

_GRPC_HEADERS: Final = "grpc-status,grpc-message,grpc-status-details-bin,x-request-id"
_ELSEWHERE: Final = {"@type": f"{EXTENSIONS}.retry.host.previous_hosts.v3.PreviousHostsPredicate"}
_HEADER_INPUT: Final = "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput"
_ROUTE_LIST: Final = "type.googleapis.com/envoy.config.route.v3.RouteList"
_CORS_POLICY: Final = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy"


def route_table(
    methods: Sequence[Method],
    jwks: Sequence[Mapping[str, str]],
    origins: Sequence[str],
    models: Sequence[ModelRoute],
    *,
    rest: bool,
) -> Resource:
    """Return the routes of the public listener.

    Args:
        methods: Every RPC there is.
        jwks: The public keys that tokens are verified with, as JSON Web Keys.
        origins: From where pages in browsers may call, such as `https://app.example.org`.
        models: Where the calls about some models go; those about others go to the default pool.
        rest: Whether inference also answers HTTP.
    """
    general = [
        _keys(jwks),
        *(_route(method) for method in methods if not method.rule.denied),
        *([_rest()] if rest else []),
    ]
    host: dict[str, Any] = {"name": ROUTES_NAME, "domains": ["*"]}
    if origins:
        # What a browser asks before it calls is answered by a filter, for which a route must be.
        general.insert(0, _preflight(methods))
        host["typed_per_filter_config"] = {"envoy.filters.http.cors": _cors(origins)}
    if models:
        host["matcher"] = _by_model(methods, models, general, rest=rest)
    else:
        host["routes"] = general
    return {
        "name": ROUTES_NAME,
        "virtual_hosts": [host],
        "request_headers_to_remove": [DOOR_HEADER],
    }


def _by_model(
    methods: Sequence[Method],
    models: Sequence[ModelRoute],
    general: Sequence[Resource],
    *,
    rest: bool,
) -> Resource:
    """Choose routes by the authorized model, at the same cost for any number of models.

    The header is there only once the script has decided; until then, `general` counts.
    """
    about_models = [method for method in methods if method.rule.model_field]
    return {
        "matcher_tree": {
            "input": {
                "name": "model",
                "typed_config": {"@type": _HEADER_INPUT, "header_name": "x-servery-model"},
            },
            "exact_match_map": {
                "map": {
                    route.model.wire_name: _routes(
                        [
                            *(_route(method, route) for method in about_models),
                            *([_rest(route)] if rest else []),
                        ]
                    )
                    for route in models
                }
            },
        },
        "on_no_match": _routes(general),
    }


def _routes(routes: Sequence[Resource]) -> Resource:
    return {"action": typed("routes", {"@type": _ROUTE_LIST, "routes": routes})}


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
        "allow_methods": "GET,POST,PUT,PATCH,DELETE",
        "allow_headers": "authorization,content-type,grpc-timeout,x-grpc-web,x-user-agent,"
        "x-request-id,inference-header-content-length",
        "expose_headers": f"{_GRPC_HEADERS},inference-header-content-length",
        "max_age": "600",
    }


def _rest(model: ModelRoute | None = None) -> Resource:
    """Inference over HTTP; which of it may be called is the script's matter."""
    route = {
        **_target(INFERENCE_HTTP, model, http_cluster),
        "timeout": "300s",
        "retry_policy": _retry("connect-failure,refused-stream,retriable-status-codes")
        | {"retriable_status_codes": [503]},
    }
    if model is not None:
        route |= _mirror(model, http_cluster)
    return {"match": {"prefix": "/v2"}, "route": route}


def pool_cluster(pool: str) -> str:
    """Return the name of the cluster of a pool."""
    return INFERENCE if pool == DEFAULT_POOL else f"{INFERENCE}-pool-{pool}"


def http_cluster(pool: str) -> str:
    """Return the name of the cluster of the HTTP doors of a pool."""
    return INFERENCE_HTTP if pool == DEFAULT_POOL else f"{INFERENCE_HTTP}-pool-{pool}"


def _route(method: Method, model: ModelRoute | None = None) -> Resource:
    # With max_stream_duration, `timeout` does not count. Without a deadline of the caller the
    # first value holds; its deadline may be as long as the second.
    unbounded = method.client_streaming or method.server_streaming
    default, longest = ("3600s", "3600s") if unbounded else ("60s", "300s")
    action: dict[str, Any] = {
        **_target(method.upstream, model, pool_cluster),
        "timeout": "0s",
        "max_stream_duration": {
            "max_stream_duration": default,
            "grpc_timeout_header_max": longest,
        },
    }
    if method.server_streaming:
        action["idle_timeout"] = "0s"  # A watch may have nothing to say for long.
    if not unbounded:
        # Only what no server has begun to do; inference has no effects, so also what one refused or
        # gave up because it stops.
        retry_on = "connect-failure,refused-stream"
        action["retry_policy"] = _retry(
            f"{retry_on},unavailable,cancelled" if method.upstream == INFERENCE else retry_on
        )
    if model is not None and not unbounded:
        action |= _mirror(model, pool_cluster)
    return {"match": {"path": method.path, "headers": [_GRPC]}, "route": action}


def _retry(retry_on: str) -> dict[str, Any]:
    return {
        "retry_on": retry_on,
        "num_retries": 2,
        "retry_host_predicate": [typed("envoy.retry_host_predicates.previous_hosts", _ELSEWHERE)],
        # The server that is down has the least to do, so it is drawn again and again.
        "host_selection_retry_max_attempts": 20,
        "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
    }


def _target(
    upstream: str, model: ModelRoute | None, cluster: Callable[[str], str]
) -> Mapping[str, Any]:
    if model is None:
        return {"cluster": upstream}
    if len(model.pools) == 1:
        return {"cluster": cluster(model.pools[0][0])}
    shares = [{"name": cluster(pool), "weight": weight} for pool, weight in model.pools]
    return {"weighted_clusters": {"clusters": shares}}


def _mirror(model: ModelRoute, cluster: Callable[[str], str]) -> Mapping[str, Any]:
    if not model.mirror_pool:
        return {}
    return {"request_mirror_policies": [{"cluster": cluster(model.mirror_pool)}]}
