"""Clusters that an Envoy accepted and does not take up are told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as pb
from prometheus_client import REGISTRY

from servery_gateway import warming
from servery_gateway.warming import SERVICE, WarmingWatch
from servery_rpc.server import serving
from servery_rpc.settings import ServerSettings

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder


def gauge() -> float | None:
    return REGISTRY.get_sample_value("servery_gateway_warming_clusters")


async def test_warming_that_lasts_is_logged_once_and_its_end_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    now = 0.0
    watch = WarmingWatch(lambda: now)
    settings = ServerSettings(listen=f"unix:{tmp_path}/watch.sock", drain_s=0)
    async with (
        serving(settings, watch.service) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):

        async def report(at: float, value: int) -> None:
            nonlocal now
            now = at
            request = pb.ExportMetricsServiceRequest()
            metric = request.resource_metrics.add().scope_metrics.add().metrics.add()
            metric.name = "warming_clusters"
            metric.gauge.data_points.add().as_int = value
            call: Any = channel.unary_unary(f"/{SERVICE}/Export")
            await call(request.SerializeToString())

        def alerts() -> list[str]:
            return [r.message for r in caplog.records if r.name == "servery_gateway.warming"]

        await report(0, 2)
        await report(1, 0)  # Another Envoy.
        assert gauge() == 2
        assert not alerts()
        await report(10, 1)
        await report(15, 1)
        assert len(alerts()) == 1
        assert "1 clusters" in alerts()[0]
        await report(20, 0)
        assert gauge() == 1
        await report(31, 0)
        assert gauge() == 0
        assert len(alerts()) == 2


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.usefixtures("stack")
async def test_envoy_reports(build: Builder) -> None:
    warming._WARMING.set(7)
    await build.until(lambda: asyncio.sleep(0, gauge() == 0), 15)
