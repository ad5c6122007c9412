"""What was found out about graphs is used again, and only if it is whole."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import json
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from servery_inference.engine import Engine, LoadFailedError
from servery_inference.graph_cache import GraphCache, GraphCacheUnsafeError
from servery_inference.options import ModelOptions
from servery_inference.sandbox import AdmissionLimits, Sandbox
from servery_inference.sessions import open_engine
from tests.inference import graphs
from tests.inference.calling import answers, infer_request, stub
from tests.inference.conftest import serve_directory

NUM_FOLDED = 2000
X = np.ones((1, 2), np.float32)


@cache
def slow_to_optimise() -> bytes:
    """`y` is `x` FP32 [batch, 2] plus what thousands of nodes compute from nothing but weights."""
    one = numpy_helper.from_array(np.ones(2, np.float32), "v0")
    nodes = [helper.make_node("Add", [f"v{n}", "v0"], [f"v{n + 1}"]) for n in range(NUM_FOLDED)]
    nodes.append(helper.make_node("Add", ["x", f"v{NUM_FOLDED}"], ["y"]))
    value = graphs.value("x", "FP32", ("batch", 2)), graphs.value("y", "FP32", ("batch", 2))
    return graphs.model(nodes, [value[0]], [value[1]], [one])


def answer(engine: Engine) -> float:
    return float(engine.run({"x": X}, ["y"])[0][0, 0])


def eager(root: Path) -> GraphCache:
    """A cache that keeps whatever takes any time."""
    return GraphCache(root, min_load_s=0)


def kept(root: Path) -> list[Path]:
    return sorted(root.glob("*/graph.onnx"))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    graphs.store(tmp_path / "models", "m", slow_to_optimise())
    return tmp_path / "models" / "m" / "1" / "model.onnx"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "graphs"


def test_a_graph_is_optimised_once(graph: Path, root: Path) -> None:
    options = ModelOptions()
    assert answer(open_engine(graph, options, eager(root))) == NUM_FOLDED + 2
    [file] = kept(root)
    assert len(onnx.load(file).graph.node) < 5
    before = time.perf_counter()
    again = open_engine(graph, options, eager(root))
    seconds = time.perf_counter() - before
    assert answer(again) == NUM_FOLDED + 2
    assert kept(root) == [file]
    assert seconds < json.loads(file.with_name("facts.json").read_bytes())["load_s"]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: (folder / "graph.onnx").write_bytes(graphs.plus(1)), id="else"),
        pytest.param(lambda folder: (folder / "graph.onnx").write_bytes(b""), id="cut off"),
        pytest.param(lambda folder: (folder / "graph.onnx").unlink(), id="gone"),
        pytest.param(lambda folder: (folder / "facts.json").write_text("{"), id="no facts"),
        pytest.param(lambda folder: (folder / "facts.json").write_text("[]"), id="other facts"),
    ],
)
def test_what_is_not_what_was_kept_is_not_used(
    graph: Path, root: Path, damage: Callable[[Path], object]
) -> None:
    open_engine(graph, ModelOptions(), eager(root))
    [file] = kept(root)
    damage(file.parent)
    assert answer(open_engine(graph, ModelOptions(), eager(root))) == NUM_FOLDED + 2
    assert len(onnx.load(kept(root)[0]).graph.node) < 5  # It was made again.


def test_other_options_and_other_graphs_have_entries_of_their_own(graph: Path, root: Path) -> None:
    entries = GraphCache(root)
    keys = {entries.key(graph, ModelOptions()), entries.key(graph, ModelOptions(graph_level=1))}
    (graph.parent / "weights").write_bytes(b"1")
    keys.add(entries.key(graph, ModelOptions()))
    (graph.parent / "weights").write_bytes(b"2")
    keys.add(entries.key(graph, ModelOptions()))
    graph.write_bytes(graphs.plus(1))
    keys.add(entries.key(graph, ModelOptions()))
    assert len(keys) == 5


def test_what_loads_at_once_is_not_kept(root: Path, tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    open_engine(tmp_path / "m" / "1" / "model.onnx", ModelOptions(), GraphCache(root, min_load_s=9))
    assert not kept(root)


def test_external_data_still_comes_from_beside_the_graph(graph: Path, root: Path) -> None:
    model = onnx.load(graph)
    weight = model.graph.initializer[0]
    data = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights")
    weight.external_data.add(key="length", value=str(len(data)))
    (graph.parent / "weights").write_bytes(data)
    graph.write_bytes(model.SerializeToString())
    for _ in range(3):
        assert answer(open_engine(graph, ModelOptions(), eager(root))) == NUM_FOLDED + 2


def test_a_graph_that_cannot_be_loaded_is_refused_as_without_a_cache(
    graph: Path, root: Path
) -> None:
    graph.write_bytes(b"no graph")
    with pytest.raises(LoadFailedError, match="ONNX Runtime cannot load"):
        open_engine(graph, ModelOptions(), eager(root))


def test_a_directory_that_others_may_write_to_is_refused(root: Path) -> None:
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(GraphCacheUnsafeError):
        GraphCache(root)


def test_entries_used_longest_ago_make_room(root: Path) -> None:
    entries = GraphCache(root, max_bytes=270)
    for number in range(3):
        with entries.draft(f"{number}") as draft:
            draft.graph.write_bytes(bytes(10))
            draft.keep({})
        os.utime(root / f"{number}", (number, number))
    assert entries.read("0") is not None  # Used just now.
    with entries.draft("3") as draft:
        draft.keep({})
    assert {path.name for path in root.iterdir()} == {"0", "2", "3"}


def test_of_two_processes_that_keep_the_same_at_once_one_does(root: Path) -> None:
    one, other = GraphCache(root), GraphCache(root)
    with one.draft("k") as first, other.draft("k") as second:
        first.keep({"by": 1})
        second.keep({"by": 2})
    entry = one.read("k")
    assert entry is not None
    assert entry.facts["by"] == 1
    assert [path.name for path in root.iterdir()] == ["k"]


async def test_a_graph_is_admitted_once(graph: Path, root: Path) -> None:
    limits = AdmissionLimits(memory_bytes=4 << 30, wall_s=30)
    async with Sandbox.open(limits, GraphCache(root)) as sandbox:
        grown_bytes = await sandbox.admit(graph)
        assert sandbox._process is not None
    async with Sandbox.open(limits, GraphCache(root)) as sandbox:
        assert await sandbox.admit(graph) == grown_bytes
        assert sandbox._process is None
        graphs.store(graph.parent, "bad", b"no graph")
        with pytest.raises(LoadFailedError):
            await sandbox.admit(graph.parent / "bad" / "1" / "model.onnx")
    stricter = AdmissionLimits(memory_bytes=2 << 30, wall_s=30)
    async with Sandbox.open(stricter, GraphCache(root)) as sandbox:
        await sandbox.admit(graph)
        assert sandbox._process is not None


async def test_a_server_that_starts_again_answers_alike(graph: Path, tmp_path: Path) -> None:
    for _ in range(2):
        async with serve_directory(
            graph.parent.parent.parent, cache_dir=tmp_path / "cache", admission_wall_s=30.0
        ) as channel:
            got = answers(await stub(channel).ModelInfer(infer_request("m", {"x": X})))
            assert got["y"][0, 0] == NUM_FOLDED + 2
    assert list((tmp_path / "cache" / "graphs").iterdir())
