"""Spans of requests and runs, as a real collector gets them over OTLP."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from servery_inference.serving import serving_inference
from servery_inference.settings import InferenceSettings
from servery_inference.trace_settings import TraceSettings
from tests.inference import graphs
from tests.inference.asking_http import LENGTH, Client
from tests.inference.calling import failure, infer_request, stub
from tests.inference.conftest import serve_directory
from tests.inference.test_diagnosis import trace_settings
from tests.inference.test_model_config import write_config
from tests.rpc.collector import Collector, attributes, collecting

RPC = "inference.GRPCInferenceService/ModelInfer"
X = np.ones((1, 2), "<f4")
RAW = {LENGTH: "0"}
STAGES = {"servery.queue_us", "servery.compute_input_us", "servery.compute_infer_us"}


@asynccontextmanager
async def serve(root: Path, **flags: Any) -> AsyncIterator[tuple[Collector, grpc.aio.Channel]]:
    """Serve with traces; the collector has them all once the inner block ends."""
    async with (
        collecting() as (collector, endpoint),
        serve_directory(root, otlp_endpoint=endpoint, **flags) as channel,
    ):
        yield collector, channel


def traced(number: int) -> tuple[tuple[str, str], ...]:
    return (("traceparent", f"00-{number:032x}-{1:016x}-01"),)


def trace_of(span: Span) -> int:
    return int(span.trace_id.hex(), 16)


async def test_a_span_tells_which_graph_ran(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1), explain_onnx=graphs.parts())
    why = infer_request("m", {"x": X})
    why.parameters["explain"].bool_param = True
    async with serve(tmp_path) as (collector, channel):
        for number, request in ((1, infer_request("m", {"x": X})), (2, why)):
            await stub(channel).ModelInfer(request, metadata=traced(number))
    for name in ("infer", "batch"):
        told = {trace_of(s): attributes(s)["servery.model.graph"] for s in collector.named(name)}
        assert told == {1: "model.onnx", 2: "explain.onnx"}


async def test_a_run_is_linked_to_every_request_in_it(tmp_path: Path) -> None:
    """Two requests that only fill the batch together share one run."""
    graphs.store(tmp_path, "m", graphs.plus(1))
    delay = "max_queue_delay_microseconds: 60000000"
    write_config(tmp_path, f"max_batch_size: 2 dynamic_batching {{ {delay} }}")
    async with serve(tmp_path) as (collector, channel):
        calls = [
            stub(channel).ModelInfer(infer_request("m", {"x": X}), metadata=traced(number))
            for number in (1, 2)
        ]
        async with asyncio.timeout(20):
            await asyncio.gather(*calls)
    calls_by_trace = {trace_of(span): span for span in collector.named(RPC)}
    requests = {trace_of(span): span for span in collector.named("infer")}
    [batch] = collector.named("batch")
    assert calls_by_trace.keys() == requests.keys() == {1, 2}
    for number, request in requests.items():
        assert request.parent_span_id == calls_by_trace[number].span_id
        assert attributes(request).keys() > STAGES
        assert [link.span_id for link in request.links] == [batch.span_id]
    assert {link.span_id for link in batch.links} == {r.span_id for r in requests.values()}
    assert batch.parent_span_id == requests[trace_of(batch)].span_id
    told = attributes(batch)
    assert told.keys() > STAGES
    assert (told["servery.model.name"], told["servery.model.version"]) == ("m", 1)
    assert told["servery.batch.requests"] == 2
    for link in batch.links:
        assert 0 < attributes(link)["servery.queue_us"] <= told["servery.queue_us"]
    request = requests[trace_of(batch)]
    begin, end = request.start_time_unix_nano, request.end_time_unix_nano
    assert begin < batch.start_time_unix_nano < batch.end_time_unix_nano <= end


@pytest.mark.parametrize("model", ["direct", "sequence"])
async def test_a_request_alone_has_a_run_below_it(tmp_path: Path, model: str) -> None:
    graphs.store(tmp_path, model, graphs.plus(1))
    request = infer_request(model, {"x": X})
    if model == "sequence":
        write_config(tmp_path, "sequence_batching { }", model)
        request.parameters["sequence_id"].int64_param = 7
        request.parameters["sequence_start"].bool_param = True
    async with serve(tmp_path) as (collector, channel):
        await stub(channel).ModelInfer(request)
    [call], [inside], [run] = (collector.named(name) for name in (RPC, "infer", "batch"))
    assert (inside.parent_span_id, run.parent_span_id) == (call.span_id, inside.span_id)
    assert len({span.trace_id for span in collector.spans}) == 1


async def test_each_request_of_a_stream_has_a_span_below_that_of_the_stream(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    async with serve(tmp_path) as (collector, channel):
        requests = [infer_request("m", {"x": X}) for _ in range(3)]
        async for _ in stub(channel).ModelStreamInfer(iter(requests)):
            pass
    [stream] = collector.named(RPC.replace("ModelInfer", "ModelStreamInfer"))
    inside = collector.named("infer")
    assert [span.parent_span_id for span in inside] == [stream.span_id] * 3


async def test_a_run_that_fails_says_so(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.pick())
    async with serve(tmp_path) as (collector, channel):
        await failure(stub(channel).ModelInfer(infer_request("m", {"x": np.array([9])})))
    for name in ("infer", "batch"):
        [span] = collector.named(name)
        assert span.status.code == span.status.STATUS_CODE_ERROR


async def test_what_the_caller_does_not_record_is_not_recorded(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    async with serve(tmp_path, trace_ratio=0.0) as (collector, channel):
        await stub(channel).ModelInfer(infer_request("m", {"x": X}))
    assert not collector.spans


async def test_trace_settings_choose_which_requests_get_spans(tmp_path: Path) -> None:
    for model in ("all", "some", "none"):
        graphs.store(tmp_path, model, graphs.plus(1))
    async with serve(tmp_path) as (collector, channel):
        start = await trace_settings(channel)
        assert (start["trace_level"], start["trace_mode"]) == (["TIMESTAMPS"], ["opentelemetry"])
        await trace_settings(channel, "some", trace_rate=["2"], trace_count=["1"])
        await trace_settings(channel, "none", trace_level=["OFF"])
        for model in ("all", "some", "none"):
            for _ in range(4):
                await stub(channel).ModelInfer(infer_request(model, {"x": X}))
    models = [attributes(span)["servery.model.name"] for span in collector.named("infer")]
    assert (models.count("all"), models.count("some"), models.count("none")) == (4, 1, 0)
    assert len(collector.named(RPC)) == 12


def test_settings_count_requests_by_model() -> None:
    settings = TraceSettings(is_exported=True)
    settings.update("", {"trace_rate": ["3"], "trace_count": ["2"]})
    taken = [settings.take("m") for _ in range(12)]
    assert [number for number, took in enumerate(taken, 1) if took] == [3, 6]
    settings.update("m", {"trace_count": ["-1"]})
    assert sum(settings.take("m") for _ in range(12)) == 4
    assert not TraceSettings().take("m")


async def test_requests_over_http_are_traced_too(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    async with collecting() as (collector, endpoint):
        settings = InferenceSettings(
            model_repository=tmp_path, drain_s=0, http_port=0, otlp_endpoint=endpoint
        )
        async with serving_inference(settings) as server:
            await asyncio.wait_for(server.ready.wait(), 20)
            client = Client(str(server.http_address))
            await client("POST", "/v2/models/m/infer", X.tobytes(), dict(traced(1), **RAW))
            await client("POST", "/v2/models/nope/infer", X.tobytes(), RAW)
            await client("GET", "/v2/health/ready")
    told, missing = collector.named("POST /v2/models/{model}/infer")
    assert trace_of(told) == 1
    assert attributes(told)["http.response.status_code"] == 200
    assert attributes(missing)["http.response.status_code"] == 404
    [inside] = collector.named("infer")
    assert inside.parent_span_id == told.span_id
    assert len(collector.spans) == 4
