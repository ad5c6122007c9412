"""What a process may use, and what this machine has: of it, or of the container around it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from servery.trainer.v1 import training_pb2 as pb

_CGROUPS: Final = Path("/sys/fs/cgroup")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class Resources:
    """An amount of cores and memory."""

    cores: int

    memory_bytes: int

    @classmethod
    def of(cls, message: pb.Resources) -> Self:
        """Read a message."""
        return cls(message.cores, message.memory_bytes)

    def to_proto(self) -> pb.Resources:
        """Render it."""
        return pb.Resources(cores=self.cores, memory_bytes=self.memory_bytes)

    def __add__(self, other: Self) -> "Resources":
        return Resources(self.cores + other.cores, self.memory_bytes + other.memory_bytes)

    def within(self, limit: "Resources") -> bool:
        """Tell whether `limit` has at least as much of both."""
        return self.cores <= limit.cores and self.memory_bytes <= limit.memory_bytes

    def share(self, parts: int) -> "Resources":
        """Return one of `parts` equal parts, but at least a core."""
        return Resources(max(1, self.cores // parts), self.memory_bytes // parts)

    def fraction(self, whole: "Resources") -> float:
        """Return the part of `whole` this is, of the resource of which it is more."""
        return max(self.cores / whole.cores, self.memory_bytes / whole.memory_bytes)


def machine(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> Resources:
    """Return what processes of this one may use: the least that the kernel or a cgroup allows.

    Args:
        cgroups: Where cgroups are mounted, version 2.
        membership: The file that names the cgroup of this process.
    """
    cores = len(os.sched_getaffinity(0))
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for directory in _own_cgroups(cgroups, membership):
        quota, _, period = _read(directory / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            cores = min(cores, max(1, int(quota) // int(period)))
        limit = _read(directory / "memory.max")
        if limit.isdecimal():
            memory_bytes = min(memory_bytes, int(limit))
    return Resources(cores, memory_bytes)


def _own_cgroups(cgroups: Path, membership: Path) -> list[Path]:
    """The cgroup of this process and those around it."""
    for line in _read(membership).splitlines():
        if line.startswith("0::/"):
            own = cgroups / line.removeprefix("0::/")
            return [own, *(path for path in own.parents if path.is_relative_to(cgroups))]
    return []


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # Another version of cgroups, or none.
        return ""
