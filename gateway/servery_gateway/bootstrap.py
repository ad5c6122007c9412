"""What Envoy starts with: where its configuration comes from, and its own limits. Pure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from servery_gateway.address import UnixAddress
from servery_gateway.configuration_files import source
from servery_gateway.extensions import CONTROL_PLANE, EXTENSIONS, typed
from servery_gateway.snapshot import CLUSTER, LISTENER

_MAX_CONNECTIONS: Final = 10_000
MAX_HEAP_MIB: Final = 4096
WARMING_METRIC: Final = "warming"
"""How many clusters work by their settings of before; Envoy does not tell which."""

HEALTHY_METRIC: Final = "healthy"
"""How many servers of a cluster are healthy."""

_SINK: Final = f"{EXTENSIONS}.stat_sinks.open_telemetry.v3.SinkConfig"
_STATISTIC_NAME: Final = f"{EXTENSIONS}.matching.common_inputs.stats.v3.StatFullNameMatchInput"
_TRACKED_FROM_LOG2_BYTES: Final = 20
"""Streams that hold at least this much may be reset when memory runs short; the largest first."""

_LOG_FORMAT: Final = {
    "time": "%Y-%m-%dT%T.%e%z",
    "level": "%l",
    "logger": "envoy.%n",
    "message": "%j",
}


def bootstrap(
    ads: UnixAddress,
    admin: UnixAddress,
    files: Path | None = None,
    max_heap_mib: int = MAX_HEAP_MIB,
) -> Mapping[str, Any]:
    """Return the bootstrap configuration.

    Args:
        ads: The control plane.
        admin: Where Envoy answers administrators.
        files: Directory of `ConfigurationFiles` to serve by, instead of what `ads` says.
        max_heap_mib: Memory from 80 % of which on it resets its largest streams, and from 95 % of
            which on it takes no more requests.
    """
    control_plane = {
        "name": CONTROL_PLANE,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {
                    "http2_protocol_options": {
                        "connection_keepalive": {"interval": "10s", "timeout": "5s"}
                    }
                },
            }
        },
        "load_assignment": {
            "cluster_name": CONTROL_PLANE,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": ads.path}}}}]}
            ],
        },
    }
    return {
        "node": {"id": "envoy", "cluster": "servery"},
        "admin": {"address": {"pipe": {"path": admin.path, "mode": 0o600}}},
        "application_log_config": {"log_format": {"json_format": _LOG_FORMAT}},
        "static_resources": {"clusters": [control_plane]},
        "dynamic_resources": _by_ads() if files is None else _by_files(files),
        "stats_sinks": [_cluster_report()],
        "stats_flush_interval": "1s",
        "overload_manager": {
            "refresh_interval": "0.25s",
            "resource_monitors": [
                _monitor(
                    "global_downstream_max_connections",
                    "downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=_MAX_CONNECTIONS,
                ),
                _monitor(
                    "fixed_heap",
                    "fixed_heap.v3.FixedHeapConfig",
                    max_heap_size_bytes=max_heap_mib << 20,
                ),
            ],
            "buffer_factory_config": {
                "minimum_account_to_track_power_of_two": _TRACKED_FROM_LOG2_BYTES
            },
            "actions": [
                _at_heap(
                    "reset_high_memory_stream",
                    scaled={"scaling_threshold": 0.8, "saturation_threshold": 0.95},
                ),
                _at_heap("shrink_heap", threshold={"value": 0.9}),
                _at_heap("stop_accepting_requests", threshold={"value": 0.95}),
                _at_heap("stop_accepting_connections", threshold={"value": 0.98}),
            ],
        },
    }


def _by_ads() -> Mapping[str, Any]:
    source = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    back_off = {"base_interval": "0.1s", "max_interval": "1s"}
    service = {"cluster_name": CONTROL_PLANE, "retry_policy": {"retry_back_off": back_off}}
    return {
        "ads_config": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": service}],
        },
        "cds_config": source,
        "lds_config": source,
    }


def _by_files(directory: Path) -> Mapping[str, Any]:
    return {"cds_config": source(directory, CLUSTER), "lds_config": source(directory, LISTENER)}


def _cluster_report() -> Mapping[str, Any]:
    """Tells the control plane, every second, how each cluster is, and no other statistic."""
    return typed(
        "envoy.stat_sinks.open_telemetry",
        {
            "@type": _SINK,
            "grpc_service": {"envoy_grpc": {"cluster_name": CONTROL_PLANE}},
            "custom_metric_conversions": {
                "matcher_list": {
                    "matchers": [
                        _told("cluster_manager.warming_clusters", WARMING_METRIC),
                        _told(".membership_healthy", HEALTHY_METRIC),
                    ]
                },
                "on_no_match": {"action": typed("drop", {"@type": f"{_SINK}.DropAction"})},
            },
        },
    )


def _told(suffix: str, metric: str) -> Mapping[str, Any]:
    return {
        "predicate": {
            "single_predicate": {
                "input": typed("name", {"@type": _STATISTIC_NAME}),
                "value_match": {"suffix": suffix},
            }
        },
        "on_match": {
            "action": typed("tell", {"@type": f"{_SINK}.ConversionAction", "metric_name": metric})
        },
    }


def _monitor(name: str, config: str, **limits: int) -> Mapping[str, Any]:
    return {
        "name": f"envoy.resource_monitors.{name}",
        "typed_config": {"@type": f"{EXTENSIONS}.resource_monitors.{config}", **limits},
    }


def _at_heap(action: str, **when: Mapping[str, float]) -> Mapping[str, Any]:
    trigger = {"name": "envoy.resource_monitors.fixed_heap", **when}
    return {"name": f"envoy.overload_actions.{action}", "triggers": [trigger]}
