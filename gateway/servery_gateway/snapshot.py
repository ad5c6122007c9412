"""A complete configuration of Envoy: resources by type and name, with versions of the content."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

from servery.errors.v1 import error_reason_pb2 as reasons
from servery_gateway import xds_pool
from servery_rpc.errors import ServeryError

Resource = Mapping[str, Any]
"""A message of Envoy's API in protobuf's JSON form."""

CLUSTER: Final = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINTS: Final = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER: Final = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTES: Final = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
SECRET: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 a type
EXTENSION: Final = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"

TYPES: Final = (CLUSTER, ENDPOINTS, SECRET, EXTENSION, LISTENER, ROUTES)
"""In the order in which they are sent: what is referred to comes before what refers to it."""

WILDCARD: Final = frozenset({CLUSTER, LISTENER})
"""The types of which Envoy takes whatever there is; of the others it asks by name."""


class InconsistentSnapshotError(Exception):
    """A resource refers to one that is not there. A bug of the translation."""


class ConfigurationRejectedError(ServeryError):
    """Envoy refused a configuration; the one before is in force again."""

    reason = reasons.ERROR_REASON_CONFIGURATION_REJECTED

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"the data plane refused the configuration, so nothing changed: {problem}",
            problem=problem,
        )


@dataclass(frozen=True)
class Snapshot:
    """A consistent set of resources: what one refers to is there.

    Raises:
        InconsistentSnapshotError: It is not.
    """

    resources: Mapping[str, Mapping[str, Resource]]
    """Type, then name, to resource."""

    def __post_init__(self) -> None:
        """Refuse dangling references."""
        for kind, name in self._references():
            if name not in self.resources.get(kind, {}):
                raise InconsistentSnapshotError(f"no {kind.rpartition('.')[2]} {name!r}")

    @cached_property
    def versions(self) -> Mapping[str, str]:
        """Type to digest of its resources: equal resources have equal versions."""
        return MappingProxyType({kind: self._digest(kind) for kind in TYPES})

    def _digest(self, kind: str) -> str:
        content = json.dumps(self.resources.get(kind, {}), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _references(self) -> Iterator[tuple[str, str]]:
        """Type and name of each resource that another one refers to."""
        for name, cluster in self.resources.get(CLUSTER, {}).items():
            if cluster["type"] == "EDS":
                yield ENDPOINTS, name
        for listener in self.resources.get(LISTENER, {}).values():
            for part in _parts(listener):
                if "route_config_name" in part:
                    yield ROUTES, part["route_config_name"]
                if "config_discovery" in part:
                    yield EXTENSION, part["name"]
                if "sds_config" in part:
                    yield SECRET, part["name"]
        for routes in self.resources.get(ROUTES, {}).values():
            for part in _parts(routes):
                if "cluster" in part:
                    yield CLUSTER, part["cluster"]
                for share in part.get("clusters", ()):
                    yield CLUSTER, share["name"]


class Encoder:
    """Serializes snapshots. Used by one thread at a time; takes long for a type that changed."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, Mapping[str, bytes]]] = {}

    def encode(self, snapshot: Snapshot) -> Mapping[str, Mapping[str, bytes]]:
        """Return type, then name, to the serialized message."""
        for kind, version in snapshot.versions.items():
            if kind not in self._last or self._last[kind][0] != version:
                resources = snapshot.resources.get(kind, {})
                self._last[kind] = (
                    version,
                    {
                        name: xds_pool.parse(kind, resource).SerializeToString(deterministic=True)
                        for name, resource in resources.items()
                    },
                )
        return MappingProxyType({kind: encoded for kind, (_, encoded) in self._last.items()})


def _parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every JSON object inside `value`."""
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _parts(item)
