"""Clusters of an Envoy that cannot work by what it accepted are told."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as pb
from prometheus_client import REGISTRY

from servery_gateway.ads import AdsServer
from servery_gateway.bootstrap import HEALTHY_METRIC, WARMING_METRIC
from servery_gateway.cluster_watch import SERVICE, ClusterWatch
from servery_gateway.extensions import ADS
from servery_gateway.snapshot import CLUSTER, ENDPOINTS, Snapshot
from servery_rpc.errors import DependencyUnavailableError
from servery_rpc.server import serving
from servery_rpc.settings import ServerSettings
from tests.gateway.conftest import envoy, until


class Reports:
    """A watch, and an Envoy that reports what it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.watch = ClusterWatch(lambda: self.now)
        self.channel: Any = None

    async def add(self, at: float, warming: int, healthy: int) -> None:
        self.now = at
        request = pb.ExportMetricsServiceRequest()
        metrics = request.resource_metrics.add().scope_metrics.add().metrics
        metrics.add(name=WARMING_METRIC).gauge.data_points.add(as_int=warming)
        point = metrics.add(name=HEALTHY_METRIC).gauge.data_points.add(as_int=healthy)
        point.attributes.add(key="envoy.cluster_name").value.string_value = "pool"
        await self.channel.unary_unary(f"/{SERVICE}/Export")(request.SerializeToString())

    @property
    def told(self) -> tuple[bool, bool]:
        return self.watch.any_warming(), self.watch.without_server("pool")


@pytest.fixture
async def reports(tmp_path: Path) -> AsyncIterator[Reports]:
    made = Reports()
    settings = ServerSettings(listen=f"unix:{tmp_path}/watch.sock", drain_s=0)
    async with (
        serving(settings, made.watch.service) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        made.channel = channel
        yield made


def gauges() -> tuple[float | None, float | None]:
    return (
        REGISTRY.get_sample_value("servery_gateway_warming_clusters"),
        REGISTRY.get_sample_value("servery_gateway_cluster_without_server", {"cluster": "pool"}),
    )


async def test_trouble_is_over_when_no_envoy_has_told_it_for_a_while(reports: Reports) -> None:
    assert reports.told == (False, False)
    await reports.add(0, warming=2, healthy=0)
    assert reports.told == (True, True)
    assert gauges() == (2, 1)
    assert not reports.watch.without_server("other")
    await reports.add(1, warming=0, healthy=2)  # Another Envoy.
    assert reports.told == (True, True)
    await reports.add(2, warming=0, healthy=0)
    await reports.add(3.5, warming=0, healthy=1)
    assert reports.told == (False, True)
    assert gauges() == (0, 1)
    await reports.add(5, warming=0, healthy=1)
    assert reports.told == (False, False)
    assert gauges() == (0, 0)


async def test_trouble_that_lasts_is_logged_once_and_its_end_too(
    reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def logged() -> list[str]:
        return [r.levelname for r in caplog.records if r.name == "servery_gateway.cluster_watch"]

    for at in range(10):
        await reports.add(at, warming=1, healthy=1)
    assert not logged()
    for at in range(10, 15):
        await reports.add(at, warming=1, healthy=1)
    assert logged() == ["ERROR"]
    await reports.add(18, warming=0, healthy=1)
    assert logged() == ["ERROR", "INFO"]


def one_cluster(port: int) -> Snapshot:
    """Of servers whose health takes a minute to tell."""
    place = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    cluster = {
        "name": "pool",
        "type": "EDS",
        "eds_cluster_config": {"eds_config": ADS},
        "connect_timeout": f"{port}s",  # What differs makes Envoy warm it.
        "health_checks": [
            {
                "timeout": "60s",
                "interval": "60s",
                "unhealthy_threshold": 1,
                "healthy_threshold": 1,
                "tcp_health_check": {"receive": [{"text": "00"}]},
            }
        ],
    }
    endpoints = {
        "cluster_name": "pool",
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": place}}]}],
    }
    return Snapshot({CLUSTER: {"pool": cluster}, ENDPOINTS: {"pool": endpoints}})


async def test_an_envoy_tells_what_it_waits_for_and_takes_up_the_rest(own_directory: Path) -> None:
    ads, watch = AdsServer(), ClusterWatch(monotonic)
    settings = ServerSettings(listen=f"unix:{own_directory}/gateway.sock", drain_s=0)

    async def told(*expected: bool) -> None:
        async def is_told() -> bool:
            return (watch.any_warming(), watch.without_server("pool")) == expected

        await until(is_told, 20)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        await ads.publish(one_cluster(1))  # Nobody listens there: known at once.
        async with serving(settings, ads.service, watch.service):
            with envoy(own_directory):
                await told(False, True)
                warming = one_cluster(silent.getsockname()[1])
                with pytest.raises(DependencyUnavailableError):
                    await ads.publish(warming, timeout_s=1)
                await ads.publish(warming, timeout_s=1)  # As what is about something else.
                await told(True, True)
            ads.close()
