"""The filters that every request passes: who is it, which model does it mean, may it."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from google.protobuf import descriptor_pb2

from servery.inference.v1 import grpc_service_pb2, model_config_pb2
from servery_gateway.callers import CALLERS_KINDS, CALLERS_NAME, Callers
from servery_gateway.extensions import (
    ADS,
    ALLOWED_HEADER,
    CALLER_HEADER,
    DOOR_HEADER,
    EXTENSIONS,
    HTTP_FILTERS,
    RBAC,
    TENANT_HEADER,
    script,
    typed,
)
from servery_gateway.issuers import Jwks
from servery_gateway.limits import DENIED_NAME, RATE_LIMIT, RATES_NAME
from servery_gateway.methods import JWKS_PATH, Method, public_paths
from servery_gateway.snapshot import Resource
from servery_gateway.tokens import AUDIENCE, ISSUER
from servery_gateway.transcoding import transcoder
from servery_rpc.identity import CLAIMS_HEADER

AUTHENTICATION_NAME: Final = "verified-tokens"
"""The filter that verifies tokens; it comes by itself, so that no connection ends for new keys."""

_AUTHENTICATION: Final = f"{HTTP_FILTERS}.jwt_authn.v3.JwtAuthentication"
_CLOCK_SKEW_S: Final = 5
_MAX_CACHED_TOKENS: Final = 1000
"""Verified tokens that a worker remembers: to verify one costs as much as the rest of the chain."""

_HEALTH: Final = {
    "@type": f"{HTTP_FILTERS}.health_check.v3.HealthCheck",
    "pass_through_mode": False,
    "headers": [{"name": ":path", "string_match": {"exact": "/healthz"}}],
}
"""Says 200 while Envoy serves and 503 while it drains, to balancers that know no gRPC."""


def http_filters(methods: Sequence[Method]) -> list[Mapping[str, Any]]:
    """The chain, in its order: what is called, who calls, how often, about which model, may it."""
    return [
        typed("envoy.filters.http.health_check", _HEALTH),
        typed("envoy.filters.http.cors", {"@type": f"{HTTP_FILTERS}.cors.v3.Cors"}),
        typed("envoy.filters.http.grpc_web", {"@type": f"{HTTP_FILTERS}.grpc_web.v3.GrpcWeb"}),
        typed("servery.web", _web()),
        typed("envoy.filters.http.grpc_json_transcoder", transcoder(methods)),
        _discovered(AUTHENTICATION_NAME, _AUTHENTICATION),
        _discovered(CALLERS_NAME, *CALLERS_KINDS),
        _discovered(DENIED_NAME, RBAC),
        _discovered(RATES_NAME, RATE_LIMIT),
        typed("envoy.filters.http.grpc_field_extraction", _extraction(methods)),
        typed("envoy.filters.http.lua", _authorization(methods)),
        typed("envoy.filters.http.rbac", _enforcement(methods)),
        typed(
            "envoy.filters.http.router",
            {"@type": f"{HTTP_FILTERS}.router.v3.Router", "suppress_envoy_headers": True},
        ),
    ]


def _web() -> Mapping[str, Any]:
    """A script that only gRPC-Web calls pass."""
    door = {
        "name": "door",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
            "header_name": DOOR_HEADER,
        },
    }
    is_web = {"input": door, "value_match": {"prefix": "application/grpc-web"}}
    skip = {"@type": f"{EXTENSIONS}.filters.common.matcher.action.v3.SkipFilter"}
    return {
        "@type": f"{EXTENSIONS}.common.matching.v3.ExtensionWithMatcher",
        "extension_config": typed("envoy.filters.http.lua", script("web.lua")),
        "xds_matcher": {
            "matcher_list": {
                "matchers": [
                    {
                        "predicate": {"not_matcher": {"single_predicate": is_web}},
                        "on_match": {"action": typed("skip", skip)},
                    }
                ]
            }
        },
    }


def _discovered(name: str, *kinds: str) -> Mapping[str, Any]:
    """A filter that comes as a resource of its own, so that it changes without the listener."""
    return {"name": name, "config_discovery": {"config_source": ADS, "type_urls": kinds}}


def authentication(
    methods: Sequence[Method],
    jwks: Sequence[Mapping[str, str]],
    known: Callers,
    issuer_jwks: Mapping[str, Jwks],
) -> Resource:
    """Return the filter `AUTHENTICATION_NAME`.

    Args:
        methods: Every RPC there is.
        jwks: The public keys that our tokens are verified with, as JSON Web Keys.
        known: Who else may call.
        issuer_jwks: URL to public keys of the issuers whose keys are known.
    """
    ours = {
        **_provider(ISSUER, [AUDIENCE], jwks),
        # Headers and not metadata: that is copied from place to place, a node for each claim.
        "forward_payload_header": CLAIMS_HEADER,
        "claim_to_headers": [
            {"header_name": TENANT_HEADER, "claim_name": "tenant"},
            {"header_name": CALLER_HEADER, "claim_name": "sub"},
        ],
    }
    theirs = {
        f"issuer-{issuer.name}": {
            **_provider(issuer.url, issuer.audiences, issuer_jwks[issuer.url]),
            "payload_in_metadata": issuer.claims_key,
        }
        for issuer in known.identities.issuers
        if issuer.url in issuer_jwks
    }
    providers = {"servery": ours, **theirs}
    requires: list[Mapping[str, Any]] = [{"provider_name": name} for name in providers]
    if known.identities.certificates:
        requires.append({"allow_missing": {}})  # The next filter looks for a certificate.
    any_of_them = {"requires_any": {"requirements": requires}}
    public = [{"match": {"path": path}} for path in public_paths(methods)]
    return typed(
        AUTHENTICATION_NAME,
        {
            "@type": _AUTHENTICATION,
            "bypass_cors_preflight": True,
            "providers": providers,
            "rules": [
                *public,
                {
                    "match": {"prefix": "/"},
                    "requires": any_of_them if len(requires) > 1 else requires[0],
                },
            ],
        },
    )


def _provider(
    issuer: str, audiences: Sequence[str], jwks: Sequence[Mapping[str, str]]
) -> Mapping[str, Any]:
    return {
        "issuer": issuer,
        "audiences": audiences,
        "require_expiration": True,
        "clock_skew_seconds": _CLOCK_SKEW_S,
        "local_jwks": {"inline_string": json.dumps({"keys": list(jwks)}, sort_keys=True)},
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        "forward": False,
        # It ends with this filter, which other keys replace; expiry is looked at each time.
        "jwt_cache_config": {"jwt_cache_size": _MAX_CACHED_TOKENS},
    }


def _extraction(methods: Sequence[Method]) -> Mapping[str, Any]:
    described = descriptor_pb2.FileDescriptorSet()
    for file in (model_config_pb2.DESCRIPTOR, grpc_service_pb2.DESCRIPTOR):
        file.CopyToProto(described.file.add())
    packed = described.SerializeToString(deterministic=True)
    return {
        "@type": f"{HTTP_FILTERS}.grpc_field_extraction.v3.GrpcFieldExtractionConfig",
        "descriptor_set": {"inline_bytes": base64.b64encode(packed).decode()},
        "extractions_by_method": {
            f"{method.service}.{method.name}": {
                "request_field_extractions": {method.rule.model_field: {}}
            }
            for method in methods
            if method.rule.model_field
        },
    }


def _authorization(methods: Sequence[Method]) -> Mapping[str, Any]:
    """The script, behind the table of methods it decides by."""
    lines = [f"  [{json.dumps(JWKS_PATH)}] = {{public = true}},"]
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
    rules = "\n".join(["local RULES = {", *lines, "}", ""])
    return script("refusal.lua", "claims.lua", "authorization.lua", before=rules)


def _enforcement(methods: Sequence[Method]) -> Mapping[str, Any]:
    anyone = [{"any": True}]
    return {
        "@type": RBAC,
        "rules": {
            "action": "ALLOW",
            "policies": {
                "public": {
                    "permissions": [
                        {"url_path": {"path": {"exact": path}}} for path in public_paths(methods)
                    ],
                    "principals": anyone,
                },
                "authorized": {
                    "permissions": [{"header": {"name": ALLOWED_HEADER, "present_match": True}}],
                    "principals": anyone,
                },
            },
        },
    }
