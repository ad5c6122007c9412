"""What the gateway knows in, Envoy's configuration out. Pure: no sockets, no clock, no files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from servery_gateway.address import Address, HostAddress, UnixAddress
from servery_gateway.callers import CALLERS_NAME, Callers, callers
from servery_gateway.certificate import Certificate
from servery_gateway.extensions import ADS
from servery_gateway.filters import AUTHENTICATION_NAME, authentication
from servery_gateway.issuers import Jwks
from servery_gateway.limits import DENIED_NAME, RATES_NAME, Rates, deny, rate_limits
from servery_gateway.listener import (
    CERTIFICATE_NAME,
    CLIENT_CA_NAME,
    LISTENER_NAME,
    public_listener,
)
from servery_gateway.methods import INFERENCE_HTTP, Method, public_paths
from servery_gateway.model_routes import ModelRoute
from servery_gateway.routes import ROUTES_NAME, http_cluster, pool_cluster, route_table
from servery_gateway.snapshot import (
    CLUSTER,
    ENDPOINTS,
    EXTENSION,
    LISTENER,
    ROUTES,
    SECRET,
    Resource,
    Snapshot,
)

_HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayState:
    """Everything the configuration of Envoy follows from."""

    public: HostAddress
    """Where Envoy serves clients."""

    certificate: Certificate | None
    """None: without TLS."""

    upstreams: Mapping[str, tuple[Address, ...]]
    """Where the processes behind are reached; every name of `methods.Method.upstream`, and
    `INFERENCE_HTTP` if inference answers HTTP, too."""

    pools: Mapping[str, tuple[Address, ...]]
    """More pools of inference servers, beside the default one, by name."""

    http_pools: Mapping[str, tuple[Address, ...]]
    """The HTTP doors of those servers; of every pool if inference answers HTTP, else of none."""

    models: tuple[ModelRoute, ...]
    """Where the calls about some models go."""

    origins: tuple[str, ...]
    """From where pages in browsers may call, such as `https://app.example.org`."""

    jwks: tuple[Mapping[str, str], ...]
    """The public keys that tokens are verified with, as JSON Web Keys."""

    refused: Mapping[str, frozenset[str]]
    """Why (a policy of `limits`) to resource names of the tenants and keys that are refused."""

    rates: Rates
    """How often may be called."""

    callers: Callers = field(default_factory=Callers)
    """Who may call without a key, and who may have how much in flight."""

    issuer_jwks: Mapping[str, Jwks] = field(default_factory=dict)
    """URL to public keys of the OIDC issuers whose keys are known."""

    client_ca: str | None = None
    """What client certificates are checked against, as PEM; None: nobody is asked for one."""


def translate(state: GatewayState, methods: Sequence[Method]) -> Snapshot:
    """Return the configuration; equal states have equal ones.

    Args:
        state: What the gateway knows.
        methods: Every RPC there is.

    Raises:
        InconsistentSnapshotError: `state` lacks an upstream that a method needs.
    """
    certificate = state.certificate
    clusters = dict(
        sorted(
            [
                *state.upstreams.items(),
                *((pool_cluster(pool), servers) for pool, servers in state.pools.items()),
                *((http_cluster(pool), doors) for pool, doors in state.http_pools.items()),
            ]
        )
    )
    return Snapshot(
        {
            CLUSTER: {name: _cluster(name, addresses) for name, addresses in clusters.items()},
            ENDPOINTS: {
                name: _endpoints(name, addresses)
                for name, addresses in clusters.items()
                if not _needs_dns(addresses)
            },
            SECRET: _secrets(certificate, state.client_ca),
            EXTENSION: {
                AUTHENTICATION_NAME: authentication(
                    methods, state.jwks, state.callers, state.issuer_jwks
                ),
                CALLERS_NAME: callers(state.callers, public_paths(methods)),
                DENIED_NAME: deny(state.refused),
                RATES_NAME: rate_limits(state.rates),
            },
            LISTENER: {
                LISTENER_NAME: public_listener(
                    state.public,
                    methods,
                    tls=certificate is not None,
                    asks_clients=state.client_ca is not None,
                )
            },
            ROUTES: {
                ROUTES_NAME: route_table(
                    methods,
                    state.jwks,
                    state.origins,
                    state.models,
                    rest=INFERENCE_HTTP in state.upstreams,
                )
            },
        }
    )


def _cluster(name: str, addresses: Sequence[Address]) -> Resource:
    is_http = name.startswith(INFERENCE_HTTP)
    cluster: dict[str, Any] = {
        "name": name,
        "type": "STRICT_DNS" if _needs_dns(addresses) else "EDS",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "common_lb_config": {
            "healthy_panic_threshold": {"value": 0},
            "update_merge_window": "0s",  # Who is healthy counts at once, not a second later.
        },
        "health_checks": [
            {
                # A refused connection fails at once; a busy machine gets time to answer.
                "timeout": "3s",
                "interval": "0.5s",
                "no_traffic_interval": "0.5s",
                "unhealthy_threshold": 3,
                "healthy_threshold": 1,
                **(
                    {"http_health_check": {"path": "/v2/health/live", "host": "inference"}}
                    if is_http
                    else {"grpc_health_check": {}}
                ),
            }
        ],
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 1024,
                    "max_pending_requests": 4096,
                    "max_requests": 4096,
                    "max_retries": 64,
                }
            ]
        },
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS: {
                "@type": f"type.googleapis.com/{_HTTP_OPTIONS}",
                "explicit_http_config": {"http_protocol_options": {}}
                if is_http
                else {
                    "http2_protocol_options": {
                        "connection_keepalive": {"interval": "30s", "timeout": "10s"}
                    }
                },
            }
        },
    }
    if _needs_dns(addresses):
        cluster["load_assignment"] = _endpoints(name, addresses)
    else:
        cluster["eds_cluster_config"] = {"eds_config": ADS}
    if len(addresses) > 1:
        cluster["outlier_detection"] = {
            "consecutive_5xx": 5,
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 2,
            "interval": "1s",
            "base_ejection_time": "5s",
            "max_ejection_percent": 50,
        }
    return cluster


def _endpoints(name: str, addresses: Sequence[Address]) -> Resource:
    endpoints = [{"endpoint": {"address": _place(address)}} for address in addresses]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}


def _place(address: Address) -> Resource:
    if isinstance(address, UnixAddress):
        return {"pipe": {"path": address.path}}
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def _needs_dns(addresses: Sequence[Address]) -> bool:
    return any(isinstance(address, HostAddress) and not address.is_ip for address in addresses)


def _secrets(certificate: Certificate | None, client_ca: str | None) -> Mapping[str, Resource]:
    secrets: dict[str, Resource] = {}
    if certificate is not None:
        secrets[CERTIFICATE_NAME] = {
            "name": CERTIFICATE_NAME,
            "tls_certificate": {
                "certificate_chain": {"inline_string": certificate.chain},
                "private_key": {"inline_string": certificate.key},
            },
        }
    if client_ca is not None:
        secrets[CLIENT_CA_NAME] = {
            "name": CLIENT_CA_NAME,
            "validation_context": {"trusted_ca": {"inline_string": client_ca}},
        }
    return secrets
