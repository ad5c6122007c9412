"""Graphs that must not be admitted, sent through the wire to a real throw-away process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grpc
import onnx
import pytest
from onnx import TensorProto, helper

from servery_registry.admission import RefusedError, inspect_graph, walk, words
from servery_registry.sandbox import AdmissionLimits, Sandbox
from tests.registry.conftest import (
    Client,
    Clock,
    bundle,
    eventually,
    failure,
    graph,
    opened,
    softmax,
)


def write(files: Mapping[str, bytes], directory: Path) -> None:
    for name, data in files.items():
        (directory / name).write_bytes(data)


def external(location: str, *more: tuple[str, str]) -> bytes:
    """A graph with its 16 bytes of weights in another file."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1, 2, 3, 4])
    weights.ClearField("float_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), *more):
        weights.external_data.add(key=key, value=value)
    return graph(weights=weights).SerializeToString()


def stored(model: onnx.ModelProto, directory: Path) -> Path:
    path = directory / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def many_nodes() -> bytes:
    chain = [helper.make_node("Identity", [f"v{n}"], [f"v{n + 1}"]) for n in range(20_000)]
    chain[0].input[0] = "x"
    return graph([*chain, softmax("v20000")]).SerializeToString()


GRAPHS: dict[str, Callable[[], bytes]] = {
    "garbage": lambda: b"garbage" * 10,
    "empty": lambda: b"",
    "external data in the parent directory": lambda: external("../registry.db"),
    "external data at an absolute path": lambda: external("/etc/passwd"),
    "external data in a file with another meaning": lambda: external("golden.npz"),
    "external data in the graph": lambda: external("model.onnx"),
    "external data in a file that is not there": lambda: external("weight"),
    "external data by a way around": lambda: external("./weights"),
    "external data by a way through the parent directory": lambda: external("x/../weights"),
    "external data without a place": lambda: external(""),
    "external data in two places": lambda: external("weights", ("location", "/etc/passwd")),
    "external data in a place with a NUL": lambda: external("weights\0"),
    "external data that begins behind the end": lambda: external("weights", ("offset", "17")),
    "external data that ends behind the end": lambda: external(
        "weights", ("offset", "4"), ("length", "16")
    ),
    "external data with a negative offset": lambda: external("weights", ("offset", "-4")),
    "external data of less than the tensor": lambda: external("weights", ("length", "8")),
    "too many nodes": many_nodes,
    "an operator that does not exist": lambda: graph(
        [helper.make_node("Nope", ["x"], ["p"])]
    ).SerializeToString(),
}


@pytest.mark.parametrize("name", GRAPHS)
async def test_a_bad_graph_is_refused(client: Client, name: str) -> None:
    files = bundle(model_dot_onnx=GRAPHS[name](), weights=bytes(16))
    error = await failure(client.register(files))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "ERROR_REASON_GRAPH_REFUSED"
    assert error.metadata["problem"]
    for place in (str(client.data_dir.parent), "staging", ".cc:", ".py"):
        assert place not in error.message
    assert client.leftovers() == []


@pytest.mark.parametrize(
    "place",
    [
        pytest.param((), id="all of a file"),
        pytest.param((("offset", "16"), ("length", "16")), id="part of a file"),
    ],
)
async def test_weights_may_be_in_another_file_of_the_bundle(
    client: Client, place: Sequence[tuple[str, str]]
) -> None:
    weights = bytes(16) if not place else bytes(48)
    files = bundle(model_dot_onnx=external("weights.bin", *place), weights_dot_bin=weights)
    version = await client.register(files)
    assert "weights.bin" in {file.path for file in version.files}


async def test_a_bundle_is_found_from_where_the_registry_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(bundle(), tmp_path)
    await Sandbox(AdmissionLimits(memory_bytes=4 << 30, wall_s=60)).admit(Path())


async def test_a_graph_of_another_signature_is_refused(client: Client) -> None:
    other = graph()
    other.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    other.graph.node.append(helper.make_node("Cast", ["q"], ["p"], to=TensorProto.DOUBLE))
    other.graph.node[1].output[0] = "q"
    error = await failure(client.register(bundle(model_dot_onnx=other.SerializeToString())))
    assert error.reason == "ERROR_REASON_BUNDLE_INVALID"
    assert error.metadata["file"] == "signature.json"


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param(AdmissionLimits(memory_bytes=2**31, wall_s=0.05), id="time"),
        pytest.param(AdmissionLimits(memory_bytes=2**26, wall_s=30), id="memory"),
    ],
)
async def test_a_graph_that_breaks_a_limit_is_refused_and_the_registry_lives(
    tmp_path: Path, clock: Clock, limits: AdmissionLimits
) -> None:
    async with opened(tmp_path / "data", clock, limits) as client:
        error = await failure(client.register())
        assert error.reason == "ERROR_REASON_GRAPH_REFUSED"
        assert client.leftovers() == []
        assert (await failure(client.versions())).code is grpc.StatusCode.NOT_FOUND


async def test_a_bundle_brings_no_code_into_the_throw_away_process(client: Client) -> None:
    stop = b"raise SystemExit(1)"
    names = ("json", "onnx", "numpy", "servery_registry", "sitecustomize", "usercustomize")
    files = {f"{name}_dot_py": stop for name in names}
    assert (await client.register(bundle(**files))).name.endswith("/versions/1")


async def test_a_caller_who_leaves_during_admission_frees_its_place(client: Client) -> None:
    """More callers than places leave; then another one still gets in."""
    for _ in range(3):
        call = asyncio.ensure_future(client.register())
        await eventually(lambda: any((client.data_dir / "staging").glob("*/golden.npz")))
        call.cancel()
        await eventually(lambda: not client.leftovers())
    async with asyncio.timeout(10):
        assert (await client.register()).name.endswith("/versions/1")


def test_a_tensor_is_found_wherever_it_hides() -> None:
    hidden = onnx.load_from_string(external("x")).graph.initializer[0]
    inner = helper.make_graph([], "inner", [], [], [hidden])
    loop = helper.make_node("Loop", ["", ""], ["p"], body=inner)
    constant = helper.make_node("Constant", [], ["c"], value=hidden)
    sparse = onnx.SparseTensorProto(values=hidden)
    function = helper.make_function("ai.onnx", "F", [], ["c"], [constant], [])
    models = [graph([loop]), graph([constant]), graph(), graph()]
    models[2].graph.sparse_initializer.append(sparse)
    models[3].functions.append(function)
    for model in models:
        with pytest.raises(RefusedError):
            walk(model, {})


@pytest.mark.parametrize("domain", ["custom", "ai.onnx.training", "pkg.torch"])
def test_operators_of_other_domains_are_refused(domain: str, tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["p"], domain=domain)
    with pytest.raises(RefusedError):
        inspect_graph(stored(graph([node]), tmp_path))


def test_an_output_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    made = graph()
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, ["N"])
    made.graph.node.append(helper.make_node("SequenceConstruct", ["p"], ["s"]))
    made.graph.output.append(sequence)
    with pytest.raises(RefusedError):
        inspect_graph(stored(made, tmp_path))


@pytest.mark.parametrize(
    "message",
    [
        "Fail: /onnxruntime_src/core/graph.h:46 void f() bad opset",
        "In file ../x/checker.cc:12: bad opset",
    ],
)
def test_the_words_of_a_library_name_no_path(message: str) -> None:
    assert "/" not in words(message)
    assert words(message).endswith("bad opset")
