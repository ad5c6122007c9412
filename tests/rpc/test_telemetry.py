"""Traces of a server of the chassis, as a real collector gets them over OTLP."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from servery.registry.v1 import registry_pb2 as pb
from servery.registry.v1 import registry_pb2_grpc as pb_grpc
from servery_rpc.process import JsonFormatter
from servery_rpc.server import Service, serving
from servery_rpc.settings import ServerSettings, load
from tests.rpc.collector import attributes, collecting
from tests.rpc.test_server import NAME, Probe

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@asynccontextmanager
async def serve(**flags: Any) -> AsyncIterator[tuple[grpc.aio.Channel, Any]]:
    probe = Probe()  # type: ignore[abstract]  # has the methods that are called
    add = partial(pb_grpc.add_RegistryServiceServicer_to_server, probe)
    settings = ServerSettings(drain_s=0, **flags)
    async with (
        serving(settings, Service(NAME, add)) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield channel, pb_grpc.RegistryServiceStub(channel)


def traceparent(*, sampled: bool) -> tuple[tuple[str, str], ...]:
    return (("traceparent", f"00-{TRACE}-{PARENT}-0{int(sampled)}"), ("x-request-id", "r1"))


async def test_every_call_has_a_span_below_that_of_its_caller() -> None:
    async with collecting() as (collector, endpoint):
        async with serve(otlp_endpoint=endpoint) as (_, stub):
            request = pb.GetModelRequest(name="m")
            await stub.GetModel(request, metadata=traceparent(sampled=True))
            await stub.GetModel(request)
        [told, alone] = collector.named(f"{NAME}/GetModel")
    assert collector.services == {"servery-server"}
    assert (told.trace_id.hex(), told.parent_span_id.hex()) == (TRACE, PARENT)
    assert told.kind == Span.SPAN_KIND_SERVER
    assert attributes(told) == {
        "rpc.system": "grpc",
        "rpc.service": NAME,
        "rpc.method": "GetModel",
        "rpc.grpc.status_code": 0,
        "servery.request_id": "r1",
    }
    assert alone.trace_id != told.trace_id
    assert not alone.parent_span_id


@pytest.mark.parametrize(
    ("name", "code", "is_error"),
    [("bad", grpc.StatusCode.INVALID_ARGUMENT, False), ("bug", grpc.StatusCode.INTERNAL, True)],
)
async def test_a_span_tells_how_its_call_ended(
    name: str, code: grpc.StatusCode, *, is_error: bool
) -> None:
    async with collecting() as (collector, endpoint):
        async with serve(otlp_endpoint=endpoint) as (_, stub):
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.GetModel(pb.GetModelRequest(name=name))
        [span] = collector.spans
    assert attributes(span)["rpc.grpc.status_code"] == code.value[0]
    assert attributes(span)["servery.request_id"]
    assert (span.status.code == span.status.STATUS_CODE_ERROR) is is_error
    assert "secret" not in str(span)


async def test_a_stream_is_one_span() -> None:
    async with collecting() as (collector, endpoint):
        async with serve(otlp_endpoint=endpoint) as (_, stub):
            with pytest.raises(grpc.aio.AioRpcError):
                async for _ in stub.WatchModels(pb.WatchModelsRequest()):
                    pass
        [span] = collector.spans
    assert attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]


async def test_the_caller_decides_what_is_traced_and_else_the_ratio() -> None:
    async with collecting() as (collector, endpoint):
        async with serve(otlp_endpoint=endpoint, trace_ratio=0.0) as (_, stub):
            request = pb.GetModelRequest(name="m")
            await stub.GetModel(request)
            await stub.GetModel(request, metadata=traceparent(sampled=False))
            await stub.GetModel(request, metadata=traceparent(sampled=True))
        assert [span.trace_id.hex() for span in collector.spans] == [TRACE]


async def test_health_is_not_traced() -> None:
    async with collecting() as (collector, endpoint):
        async with serve(otlp_endpoint=endpoint) as (channel, _):
            health = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest())
        assert not collector.spans


async def test_a_collector_that_is_away_disturbs_nobody() -> None:
    async with collecting() as (_, endpoint):
        pass
    start = time.monotonic()
    async with asyncio.timeout(20):
        async with serve(otlp_endpoint=endpoint) as (_, stub):
            assert (await stub.GetModel(pb.GetModelRequest(name="m"))).model.name == "m"
    assert time.monotonic() - start < 10


def test_the_standard_variable_names_the_collector() -> None:
    def read(*argv: str, **env: str) -> str | None:
        return load(ServerSettings, "SERVERY_X", argv, env).otlp_endpoint

    standard = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1"}
    assert read() is None
    assert read(OTEL_EXPORTER_OTLP_ENDPOINT="") is None
    assert read(**standard) == "http://a:1"
    assert read(**standard, SERVERY_X_OTLP_ENDPOINT="http://b:1") == "http://b:1"
    assert read("--otlp-endpoint", "https://c:1", **standard) == "https://c:1"


@pytest.mark.parametrize(
    "flags",
    [
        {"otlp_endpoint": "collector:4317"},
        {"otlp_endpoint": "ftp://collector:1"},
        {"trace_ratio": 1.5},
    ],
)
def test_bad_settings_are_named(flags: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(flags))):
        ServerSettings(**flags)


async def test_lines_of_the_log_name_the_trace_of_their_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines: list[dict[str, Any]] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    logging.getLogger("servery_rpc").addHandler(kept := Kept())
    try:
        async with collecting() as (_, endpoint), serve(otlp_endpoint=endpoint) as (_, stub):
            bad = stub.GetModel(pb.GetModelRequest(name="bad"), metadata=traceparent(sampled=False))
            with caplog.at_level("INFO"), pytest.raises(grpc.aio.AioRpcError):
                await bad
    finally:
        logging.getLogger("servery_rpc").removeHandler(kept)
    assert [(line["trace_id"], line["request_id"]) for line in lines] == [(TRACE, "r1")]


async def test_nothing_of_it_is_loaded_while_it_is_off() -> None:
    program = (
        "import sys, servery_rpc.process, servery_rpc.server;"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    assert await process.wait() == 0
