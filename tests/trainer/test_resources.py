"""What the machine has, where a container leaves less of it."""

from pathlib import Path

import pytest

from servery_trainer.resources import Resources, machine


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    """Two cgroups, one inside the other; the outer one is narrower in memory."""
    inner = tmp_path / "cgroup" / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("150000 100000\n")
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "cpu.max").write_text("max 100000\n")
    (inner.parent / "memory.max").write_text(f"{64 * 1024**2}\n")
    return tmp_path / "cgroup"


def test_a_container_leaves_what_it_says(cgroups: Path, tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("0::/outer/inner\n")
    assert machine(cgroups, membership) == Resources(cores=1, memory_bytes=64 * 1024**2)


def test_without_one_it_is_what_the_kernel_gives(tmp_path: Path) -> None:
    got = machine(tmp_path, tmp_path / "none")
    assert got.cores >= 1
    assert got.memory_bytes > 64 * 1024**2


def test_a_share_holds_a_core_at_least() -> None:
    assert Resources(cores=2, memory_bytes=9).share(4) == Resources(cores=1, memory_bytes=2)
