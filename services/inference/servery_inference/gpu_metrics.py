"""How busy the GPUs of the machine are, as NVIDIA's management library tells it.

Names and labels are those that dashboards of Triton and `perf_analyzer` read.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Self

from prometheus_client.metrics_core import Metric

_W_PER_MW: Final = 1e-3
_J_PER_MJ: Final = 1e-3
_SHARE_PER_PERCENT: Final = 1e-2

_Value = Callable[[Any, Any], float]

_VALUES: Final[tuple[tuple[str, str, str, _Value], ...]] = (
    (
        "nv_gpu_utilization",
        "gauge",
        "Share of time in which the GPU ran something [0.0 - 1.0]",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu * _SHARE_PER_PERCENT,
    ),
    (
        "nv_gpu_memory_total_bytes",
        "gauge",
        "Memory of the GPU, in bytes",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
    ),
    (
        "nv_gpu_memory_used_bytes",
        "gauge",
        "Memory of the GPU in use, in bytes",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    ),
    (
        "nv_gpu_power_usage",
        "gauge",
        "What the GPU draws, in watts",
        lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) * _W_PER_MW,
    ),
    (
        "nv_gpu_power_limit",
        "gauge",
        "What the GPU may draw, in watts",
        lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) * _W_PER_MW,
    ),
    (
        "nv_energy_consumption",
        "unknown",
        "What the GPU took since its driver was loaded, in joules",
        lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) * _J_PER_MJ,
    ),
)


class GpuCollector:
    """Reads every GPU at every scrape; what one does not tell is left out.

    Args:
        nvml: The library, initialised.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        self._gpus = {nvml.nvmlDeviceGetUUID(handle): handle for handle in handles}

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Self | None]:
        """Use the library for the length of the block; give None where there is none, or no GPU."""
        try:
            import pynvml  # Of the extra inference-gpu only.

            pynvml.nvmlInit()
        except ImportError:
            yield None
            return
        except pynvml.NVMLError:  # There is no driver.
            yield None
            return
        try:
            yield cls(pynvml)
        finally:
            pynvml.nvmlShutdown()

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        for name, kind, text, value in _VALUES:
            metric = Metric(name, text, kind)
            for uuid, gpu in self._gpus.items():
                with contextlib.suppress(self._nvml.NVMLError):  # Not every model tells all.
                    metric.add_sample(name, {"gpu_uuid": uuid}, value(self._nvml, gpu))
            yield metric
