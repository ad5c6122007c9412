"""A checkpoint comes back bit for bit, or not at all."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from servery_trainer.checkpoints import Checkpoint, CheckpointStore, digest


def checkpoint(step: int = 3) -> Checkpoint:
    rng = np.random.default_rng(step)
    weights = [rng.normal(size=(4, 3)).astype(np.float32), np.array(step)]
    best = [np.array([np.nan, -0.0, np.inf], np.float32)]
    position = {"step": step, "best_loss": float("inf"), "order": rng.bit_generator.state}
    return Checkpoint(position, {"network": weights, "best": best, "none": []})


def test_comes_back_bit_for_bit(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "new", "a")
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    loaded, saved = store.load(), checkpoint(2)
    assert loaded is not None
    assert loaded.position == saved.position
    assert loaded.arrays.keys() == saved.arrays.keys()
    for name, arrays in saved.arrays.items():
        assert [(a.dtype, a.shape, a.tobytes()) for a in arrays] == [
            (a.dtype, a.shape, a.tobytes()) for a in loaded.arrays[name]
        ]
    assert [path.name for path in store.directory.iterdir()] == ["checkpoint.npz"]


def test_there_is_none_at_first(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "new", "a").load() is None


def test_that_of_another_training_is_passed_over(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, "a").save(checkpoint())
    assert CheckpointStore(tmp_path, "b").load() is None


@pytest.mark.parametrize("damage", ["empty", "cut", "turned", "other"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path, "a")
    store.save(checkpoint())
    path = tmp_path / "checkpoint.npz"
    whole = path.read_bytes()
    weights = np.asarray(checkpoint().arrays["network"][0]).tobytes()
    turned = whole.replace(weights, weights[::-1])
    assert turned != whole
    damaged = {"empty": b"", "cut": whole[:-100], "turned": turned, "other": b"no zip" * 100}
    path.write_bytes(damaged[damage])
    assert store.load() is None


def test_one_that_was_being_written_is_not_taken_for_whole(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "a")
    store.save(checkpoint(1))
    (tmp_path / "checkpoint.partial").write_bytes(b"PK")
    loaded = store.load()
    assert loaded is not None
    assert loaded.position["step"] == 1


def test_a_full_disk_does_not_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "checkpoint.partial").symlink_to("/dev/full")
    store = CheckpointStore(full, "a")
    store.save(checkpoint())
    assert "No space left" in caplog.text
    assert store.load() is None


@contextmanager
def no_file_over(size_bytes: int) -> Iterator[None]:
    """Let this process write no larger files, which fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_the_new_one_only_and_no_room(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "a")
    store.save(checkpoint(1))
    with no_file_over(100):
        store.save(checkpoint(2))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]
    loaded = store.load()
    assert loaded is not None
    assert loaded.position == checkpoint(1).position


def test_the_digest_tells_values_types_shapes_and_order_apart() -> None:
    one, two = np.array([1, 2], np.float32), np.array([[1, 2]], np.float32)
    digests = {
        digest(arrays)
        for arrays in ([one], [two], [one.astype(np.int32)], [one, two], [two, one], [-one], [])
    }
    assert len(digests) == 7
    assert digest([one]) == digest([one.astype(">f4")])
