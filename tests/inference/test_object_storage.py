"""A model repository in object storage: a local store stands in, behind the same interface."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

from pathlib import Path
from typing import Any

import pytest
from obstore.store import LocalStore, MemoryStore

from servery_inference.object_storage import Mirror
from servery_inference.settings import InferenceSettings
from tests.inference import graphs
from tests.inference.calling import failure, index
from tests.inference.conftest import serve_directory
from tests.inference.test_control import READY, UNLOADED, added, load, until


def stored(store: Path, cache: Path, **settings: Any) -> Any:
    return serve_directory(Path(f"file://{store}"), cache_dir=cache, **settings)


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.relative_to(root).parts[0].startswith(".")
    }


async def test_a_repository_in_object_storage_is_served(tmp_path: Path) -> None:
    store, cache = tmp_path / "store", tmp_path / "cache"
    graphs.store(store, "m", graphs.plus(1), 1)
    graphs.store(store, "m", graphs.plus(2), 2)
    (store / "m" / "config.pbtxt").write_text("max_batch_size: 4")
    async with stored(store, cache) as channel:
        assert await index(channel) == {("m", "2"): READY}
        assert await added(channel) == 2


async def test_polling_follows_the_store(tmp_path: Path) -> None:
    store, cache = tmp_path / "store", tmp_path / "cache"
    graphs.store(store, "m", graphs.plus(1))
    mode = {"model_control_mode": "poll", "repository_poll_secs": 0.05}
    async with stored(store, cache, **mode) as channel:
        graphs.store(store, "other", graphs.plus(5))
        await until(channel, {("other", "1"): READY})
        (store / "other" / "1" / "model.onnx").unlink()
        await until(channel, {("other", "1"): UNLOADED})
        assert await added(channel) == 1


async def test_load_brings_what_is_new(tmp_path: Path) -> None:
    store, cache = tmp_path / "store", tmp_path / "cache"
    store.mkdir()
    async with stored(store, cache, model_control_mode="explicit") as channel:
        assert (await failure(load(channel, "m"))).code.name == "INTERNAL"
        graphs.store(store, "m", graphs.plus(3))
        await load(channel, "m")
        assert await added(channel) == 3


def test_a_mirror_equals_its_store_and_brings_only_changes(tmp_path: Path) -> None:
    source, root = tmp_path / "source", tmp_path / "mirror"
    graphs.store(source, "a", b"first")
    graphs.store(source, "b", b"second", 7)
    for _ in range(2):  # A restarted process knows what it has.
        mirror = Mirror(LocalStore(source), root)
        mirror.refresh()
        assert files(root) == files(source)
    before = (root / "b" / "7" / "model.onnx").stat().st_ino
    (source / "a" / "1" / "model.onnx").write_bytes(b"other contents")
    graphs.store(source, "c", b"third")
    mirror.refresh()
    assert files(root) == files(source)
    assert (root / "b" / "7" / "model.onnx").stat().st_ino == before
    (source / "b" / "7" / "model.onnx").unlink()
    mirror.refresh()
    assert not (root / "b").exists()


def test_no_name_of_an_object_leads_out_of_the_mirror(tmp_path: Path) -> None:
    store = MemoryStore()
    for name in ("m/1/model.onnx", ".manifest.json", "m/.hidden", "a b/1/x", "m/" * 20 + "x"):
        store.put(name, b"x")
    Mirror(store, tmp_path / "mirror").refresh()
    assert list(files(tmp_path / "mirror")) == ["m/1/model.onnx"]


def test_a_marker_stands_for_an_empty_folder(tmp_path: Path) -> None:
    store = MemoryStore()
    store.put("ensemble/config.pbtxt", b'platform: "ensemble"')
    store.put("ensemble/1", b"")
    Mirror(store, tmp_path).refresh()
    assert (tmp_path / "ensemble" / "1").is_dir()


def test_an_object_store_needs_a_cache() -> None:
    with pytest.raises(ValueError, match="cache_dir"):
        InferenceSettings(model_repository=Path("s3://bucket/models"))
    settings = InferenceSettings(
        model_repository=Path("s3://bucket/models"), cache_dir=Path("cache")
    )
    assert settings.object_store == "s3://bucket/models"
