"""Metrics of GPUs: from a library that speaks as NVIDIA's does, and from a real GPU."""

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from servery_inference.gpu_metrics import GpuCollector


class NvmlError(Exception):
    """What the library raises."""


class TwoGpus:
    """The functions that are used, for two GPUs of which one tells little."""

    NVMLError = NvmlError

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, gpu: int) -> str:
        return f"GPU-{gpu}"

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> Any:
        return SimpleNamespace(gpu=25)

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> Any:
        return SimpleNamespace(total=4000, used=1000)

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:
        if gpu == 1:
            raise NvmlError
        return 70_500

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu: int) -> int:
        return self.nvmlDeviceGetPowerUsage(gpu)

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: int) -> int:
        return self.nvmlDeviceGetPowerUsage(gpu)


def scraped(collector: GpuCollector) -> set[str]:
    registry = CollectorRegistry()
    registry.register(collector)
    lines = generate_latest(registry).decode().splitlines()
    return {line for line in lines if not line.startswith("#")}


def test_each_gpu_is_told_by_its_uuid_alone() -> None:
    assert scraped(GpuCollector(TwoGpus())) == {
        'nv_gpu_utilization{gpu_uuid="GPU-0"} 0.25',
        'nv_gpu_utilization{gpu_uuid="GPU-1"} 0.25',
        'nv_gpu_memory_total_bytes{gpu_uuid="GPU-0"} 4000.0',
        'nv_gpu_memory_total_bytes{gpu_uuid="GPU-1"} 4000.0',
        'nv_gpu_memory_used_bytes{gpu_uuid="GPU-0"} 1000.0',
        'nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 1000.0',
        'nv_gpu_power_usage{gpu_uuid="GPU-0"} 70.5',
        'nv_gpu_power_limit{gpu_uuid="GPU-0"} 70.5',
        'nv_energy_consumption{gpu_uuid="GPU-0"} 70.5',
    }


def test_a_real_gpu_tells_its_memory() -> None:
    with GpuCollector.open() as collector:
        if collector is None:
            pytest.skip("there is no GPU here, or nvidia-ml-py is not installed")
        lines = scraped(collector)
    assert any(line.startswith("nv_gpu_memory_total_bytes{gpu_uuid=") for line in lines)
