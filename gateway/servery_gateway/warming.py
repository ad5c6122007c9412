"""Notes when an Envoy does not take up what it accepted: clusters that warm for ever.

An Envoy that said yes to new settings of a cluster works by the old ones until it knows its
servers. Nothing else tells that it still does, so each reports how many of them are warming.
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import logging
from collections.abc import Callable
from typing import Any, Final

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as pb
from prometheus_client import Gauge

from servery_rpc.server import Service

log = logging.getLogger(__name__)

SERVICE: Final = "opentelemetry.proto.collector.metrics.v1.MetricsService"
_TOO_LONG_S: Final = 10.0
_OVER_AFTER_S: Final = 15.0
"""How long no Envoy must have reported any: each does every 5 s, and which one is not said."""

_WARMING: Final = Gauge(
    "servery_gateway_warming_clusters",
    "Clusters whose new settings an Envoy accepted and does not work by yet",
)


class WarmingWatch:
    """Receives the reports. Belongs to one event loop.

    Args:
        clock: Returns seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first: float | None = None
        self._last = 0.0
        self._warned = False

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

    async def _export(self, request: Any, context: Any) -> Any:
        points = [
            point.as_int
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.gauge.data_points
        ]
        self._note(max(points, default=0))
        return pb.ExportMetricsServiceResponse()

    def _note(self, warming: int) -> None:
        now = self._clock()
        if warming:
            self._first = now if self._first is None else self._first
            self._last = now
            _WARMING.set(warming)
            if now - self._first >= _TOO_LONG_S and not self._warned:
                self._warned = True
                log.error(
                    "%d clusters of an Envoy have been warming for %.0f s: it works by what it had"
                    " before; are the servers named in the settings of the gateway there?",
                    warming,
                    now - self._first,
                )
        elif self._first is None or now - self._last >= _OVER_AFTER_S:
            if self._warned:
                log.info("no cluster is warming any more")
            self._first, self._warned = None, False
            _WARMING.set(0)
