"""Notes when an Envoy accepted a configuration and cannot work by it: clusters in trouble.

A cluster works by its old settings until its new servers are known, and refuses calls while none of
its servers is healthy. Acceptance tells neither, so each Envoy reports, every second, how its
clusters are.
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as pb
from prometheus_client import Gauge

from servery_gateway.bootstrap import HEALTHY_METRIC, WARMING_METRIC
from servery_rpc.server import Service

log = logging.getLogger(__name__)

SERVICE: Final = "opentelemetry.proto.collector.metrics.v1.MetricsService"
_TOO_LONG_S: Final = 10.0
_OVER_AFTER_S: Final = 3.0
"""How long no Envoy must have reported it: each does every second, and which one is not said."""

_SOME: Final = ""

_WARMING: Final = Gauge(
    "servery_gateway_warming_clusters",
    "Clusters whose new settings an Envoy accepted and does not work by yet",
)
_WITHOUT_SERVER: Final = Gauge(
    "servery_gateway_cluster_without_server",
    "1 while an Envoy knows no healthy server of a cluster, so that calls that go there fail",
    ["cluster"],
)


@dataclass(slots=True)
class _Spell:
    """A time during which something is wrong."""

    first: float
    last: float
    logged: bool = False


class ClusterWatch:
    """Receives the reports. Belongs to one event loop.

    Args:
        clock: Returns seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._spells: dict[str, _Spell] = {}
        """By the cluster without a healthy server; by `_SOME` if any are warming."""

    @property
    def service(self) -> Service:
        """What to serve."""
        handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            self._export,
            request_deserializer=pb.ExportMetricsServiceRequest.FromString,
            response_serializer=pb.ExportMetricsServiceResponse.SerializeToString,
        )
        generic = grpc.method_handlers_generic_handler(SERVICE, {"Export": handler})
        return Service(SERVICE, lambda server: server.add_generic_rpc_handlers([generic]))

    def any_warming(self) -> bool:
        """Tell whether some cluster of an Envoy works by its settings of before; not which."""
        return self._lasts(_SOME)

    def without_server(self, cluster: str) -> bool:
        """Tell whether an Envoy knows no healthy server of a cluster."""
        return self._lasts(cluster)

    def _lasts(self, what: str) -> bool:
        spell = self._spells.get(what)
        return spell is not None and self._clock() - spell.last < _OVER_AFTER_S

    async def _export(self, request: Any, context: Any) -> Any:
        now = self._clock()
        for cluster, count in _points(request, HEALTHY_METRIC):
            if not count:
                _WITHOUT_SERVER.labels(cluster).set(1)
                self._note(cluster, f"the cluster {cluster} has no healthy server", now)
        for _, count in _points(request, WARMING_METRIC):
            if count:
                _WARMING.set(count)
                what = f"{count} clusters are warming, so an Envoy works by what it had before"
                self._note(_SOME, what, now)
        for what, spell in tuple(self._spells.items()):
            if now - spell.last >= _OVER_AFTER_S:
                del self._spells[what]
                (_WITHOUT_SERVER.labels(what) if what else _WARMING).set(0)
                if spell.logged:
                    log.info("%s again", f"{what} has a healthy server" if what else "none warms")
        return pb.ExportMetricsServiceResponse()

    def _note(self, what: str, sentence: str, now: float) -> None:
        spell = self._spells.setdefault(what, _Spell(now, now))
        spell.last = now
        if now - spell.first >= _TOO_LONG_S and not spell.logged:
            spell.logged = True
            log.error(
                "%s for %.0f s: are the servers named in the settings of the gateway there?",
                sentence,
                now - spell.first,
            )


def _points(request: Any, name: str) -> Iterator[tuple[str, int]]:
    """Each cluster, if the metric tells them apart, and the value."""
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if metric.name == name:
                    for point in metric.gauge.data_points:
                        clusters = [a.value.string_value for a in point.attributes]
                        yield "".join(clusters), point.as_int
