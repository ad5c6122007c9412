"""The metrics of Triton's names, and histograms, as a scrape sees them."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

from pathlib import Path
from typing import Any

import grpc
import numpy as np
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.host_metrics import HostCollector
from servery_inference.statistics import BOUNDS_S
from tests.inference import graphs
from tests.inference.calling import failure, infer_request, stub
from tests.inference.conftest import serve_directory

DURATIONS = ("request", "queue", "compute_input", "compute_infer", "compute_output")


def scraped() -> dict[tuple[str, tuple[str, ...]], float]:
    """Values by name of the sample and values of its labels, in the order of their names."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(REGISTRY).decode())
        for sample in family.samples
    }


async def test_metrics_count_by_model_and_version(channel: grpc.aio.Channel) -> None:
    a = np.zeros((3, 16), "<i4")
    await stub(channel).ModelInfer(infer_request("simple", {"a": a, "b": a}))
    await failure(stub(channel).ModelInfer(infer_request("simple", {"a": a})))
    await failure(stub(channel).ModelInfer(infer_request("pick", {"x": np.array([9])})))
    await failure(stub(channel).ModelInfer(infer_request("no such model", {"a": a})))
    values = scraped()
    simple = ("simple", "1")
    assert values["nv_inference_request_success", simple] == 1
    assert values["nv_inference_request_failure", ("simple", "OTHER", "1")] == 1
    assert values["nv_inference_request_failure", ("simple", "REJECTED", "1")] == 0
    assert values["nv_inference_request_failure", ("pick", "BACKEND", "1")] == 1
    assert values["nv_inference_count", simple] == 3
    assert values["nv_inference_exec_count", simple] == 1
    assert values["nv_inference_pending_request_count", simple] == 0
    assert values["nv_cache_num_hits_per_model", simple] == 0
    assert values["nv_model_load_duration_secs", simple] > 0
    total, *parts = (values[f"nv_inference_{d}_duration_us", simple] for d in DURATIONS)
    assert total >= sum(parts) > 0
    assert not any("no such model" in labels for _, labels in values)


async def test_histograms_have_every_request_once(channel: grpc.aio.Channel) -> None:
    for _ in range(3):
        request = infer_request("dense", {"x": np.zeros((1, 784), "<f4")})
        await stub(channel).ModelInfer(request)
    values = scraped()
    for what in ("request", "queue", "compute"):
        name = f"servery_inference_{what}_seconds"
        assert values[f"{name}_count", ("dense", "1")] == 3
        # Labels in the order of their names: le, model, version.
        buckets = [values[f"{name}_bucket", (str(le), "dense", "1")] for le in BOUNDS_S]
        assert buckets == sorted(buckets)
        assert buckets[-1] == values[f"{name}_bucket", ("+Inf", "dense", "1")] == 3
        assert values[f"{name}_sum", ("dense", "1")] >= 0


async def test_series_end_with_their_version(tmp_path: Path) -> None:
    graphs.store(tmp_path, "plus", graphs.plus(1))
    flags: dict[str, Any] = {"model_control_mode": "explicit", "load_model": ("plus",)}
    async with serve_directory(tmp_path, **flags) as channel:
        assert any("plus" in labels for _, labels in scraped())
        request = pb.RepositoryModelUnloadRequest(model_name="plus")
        await stub(channel).RepositoryModelUnload(request)
        ready = pb.ModelReadyRequest(name="plus")
        while (await stub(channel).ModelReady(ready)).ready:
            pass
        index = pb.RepositoryIndexRequest()
        while (await stub(channel).RepositoryIndex(index)).models[0].state == "UNLOADING":
            pass
        assert not any("plus" in labels for _, labels in scraped())


def test_metrics_end_with_the_server() -> None:
    assert not any(name.startswith("nv_") for name, _ in scraped())


def test_the_machine_is_told(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  10 0 10 80 0 0 0 0 0 0\ncpu0 1\n")
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 400 kB\n")
    collector = HostCollector(tmp_path)
    (tmp_path / "stat").write_text("cpu  40 0 20 130 10 0 0 0 0 0\ncpu0 1\n")
    values = {family.name: family.samples[0].value for family in collector.collect()}
    assert values == {
        "nv_cpu_utilization": 0.4,
        "nv_cpu_memory_total_bytes": 1000 * 1024,
        "nv_cpu_memory_used_bytes": 600 * 1024,
    }
    assert list(HostCollector(tmp_path / "none").collect()) == []
