"""How busy the machine is, as Linux tells it; nothing where there is no /proc."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

_KIB: Final = 1024
_IDLE: Final = (3, 4)
"""Columns of /proc/stat for time without work: idle, and waiting for disks."""


class HostCollector:
    """Reads processors and memory at every scrape.

    Args:
        proc: Where the system tells about itself.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._before = self._ticks()

    def collect(self) -> Iterator[Metric]:
        """Yield the families that are known; utilization is that since the last scrape."""
        now = self._ticks()
        total, idle = (now[0] - self._before[0], now[1] - self._before[1])
        if total > 0:
            text = "Share of processor time that was used [0.0 - 1.0]"
            yield GaugeMetricFamily("nv_cpu_utilization", text, value=1 - idle / total)
        self._before = now
        memory = self._memory()
        if "MemTotal" in memory and "MemAvailable" in memory:
            all_of_it = memory["MemTotal"]
            yield GaugeMetricFamily(
                "nv_cpu_memory_total_bytes", "Memory of the machine, in bytes", value=all_of_it
            )
            yield GaugeMetricFamily(
                "nv_cpu_memory_used_bytes",
                "Memory of the machine in use, in bytes",
                value=all_of_it - memory["MemAvailable"],
            )

    def _ticks(self) -> tuple[int, int]:
        """Ticks of all processors since the start, and those without work."""
        try:
            columns = (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:9]
            ticks = [int(column) for column in columns]
            return sum(ticks), sum(ticks[column] for column in _IDLE)
        except (OSError, ValueError, IndexError):
            return 0, 0

    def _memory(self) -> dict[str, int]:
        try:
            lines = (self._proc / "meminfo").read_text().splitlines()
            return {
                line.split(":")[0]: int(line.split()[1]) * _KIB
                for line in lines
                if line.endswith("kB")
            }
        except (OSError, ValueError, IndexError):
            return {}
