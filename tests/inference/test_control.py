"""What is loaded when, and steering it: version policies, control modes, load and unload."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from servery.inference.v1 import grpc_service_pb2 as pb
from tests.inference import graphs
from tests.inference.calling import answers, claims, failure, index, infer_request, stub
from tests.inference.conftest import serve_directory

X = np.zeros((1, 2), "<f4")
READY = ("READY", "")
UNLOADED = ("UNAVAILABLE", "unloaded")


def explicit(root: Path, *names: str, **settings: Any) -> Any:
    return serve_directory(root, model_control_mode="explicit", load_model=names, **settings)


async def load(channel: grpc.aio.Channel, model: str, **parameters: Any) -> None:
    request = pb.RepositoryModelLoadRequest(model_name=model)
    for key, value in parameters.items():
        kind = {bytes: "bytes_param", str: "string_param", bool: "bool_param"}[type(value)]
        setattr(request.parameters[key.replace("__", ":")], kind, value)
    await stub(channel).RepositoryModelLoad(request)


async def load_files(
    channel: grpc.aio.Channel, model: str, config: str, files: dict[str, bytes]
) -> None:
    request = pb.RepositoryModelLoadRequest(model_name=model)
    request.parameters["config"].string_param = config
    for path, data in files.items():
        request.parameters[f"file:{path}"].bytes_param = data
    await stub(channel).RepositoryModelLoad(request)


async def unload(channel: grpc.aio.Channel, model: str, **parameters: bool) -> None:
    request = pb.RepositoryModelUnloadRequest(model_name=model)
    for key, value in parameters.items():
        request.parameters[key].bool_param = value
    await stub(channel).RepositoryModelUnload(request)


async def added(channel: grpc.aio.Channel, model: str = "m", version: str = "") -> float:
    """What the version of `plus` that answers adds."""
    response = await stub(channel).ModelInfer(infer_request(model, {"x": X}, model_version=version))
    return float(answers(response)["y"][0, 0])


async def until(channel: grpc.aio.Channel, expected: dict[tuple[str, str], Any]) -> None:
    async with asyncio.timeout(20):
        while True:
            if expected.items() <= (await index(channel)).items():
                return
            await asyncio.sleep(0.02)


def write_config(root: Path, model: str, text: str) -> None:
    (root / model).mkdir(exist_ok=True)
    (root / model / "config.pbtxt").write_text(text)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        pytest.param("", ["10"], id="the newest by default"),
        pytest.param("version_policy { latest { num_versions: 2 } }", ["2", "10"], id="latest 2"),
        pytest.param("version_policy: { all {} }", ["1", "2", "10"], id="all"),
        pytest.param("version_policy { specific { versions: [1, 2, 7] } }", ["1", "2"], id="some"),
    ],
)
async def test_the_version_policy_chooses(tmp_path: Path, policy: str, expected: list[str]) -> None:
    for number in (1, 2, 10):
        graphs.store(tmp_path, "m", graphs.plus(number), number)
    write_config(tmp_path, "m", policy)
    async with serve_directory(tmp_path) as channel:
        assert await index(channel) == {("m", number): READY for number in expected}
        assert await added(channel) == float(expected[-1])
        for version in expected:
            assert await added(channel, version=version) == float(version)
        metadata = await stub(channel).ModelMetadata(pb.ModelMetadataRequest(name="m"))
        assert list(metadata.versions) == expected


async def test_an_older_version_answers_where_the_newest_fails(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1), 1)
    graphs.store(tmp_path, "m", b"not a graph", 2)
    write_config(tmp_path, "m", "version_policy { latest { num_versions: 2 } }")
    async with serve_directory(tmp_path) as channel:
        assert await added(channel) == 1


async def test_explicit_serves_what_it_is_told_to(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        graphs.store(tmp_path, name, graphs.plus(number))
    async with explicit(tmp_path, "a") as channel:
        assert await index(channel) == {("a", "1"): READY, ("b", ""): ("", ""), ("c", ""): ("", "")}
        await load(channel, "b")
        assert await added(channel, "b") == 1
        await unload(channel, "a", unload_dependents=True)
        await unload(channel, "a")
        await unload(channel, "nope")
        await until(channel, {("a", "1"): UNLOADED})
        error = await failure(added(channel, "a"))
        assert error.code is grpc.StatusCode.NOT_FOUND
        assert error.message == "Request for unknown model: 'a' has no available versions"
        await load(channel, "a")
        assert await added(channel, "a") == 0


def write_chain(root: Path, name: str, step: str) -> None:
    """An ensemble of one step: it answers as `step` does."""
    io = "data_type: TYPE_FP32 dims: 2"
    write_config(
        root,
        name,
        f"""platform: "ensemble" max_batch_size: 8
        input {{ name: "x" {io} }} output {{ name: "y" {io} }}
        ensemble_scheduling {{ step {{ model_name: "{step}" model_version: -1
          input_map {{ key: "x" value: "x" }} output_map {{ key: "y" value: "y" }} }} }}""",
    )
    (root / name / "1").mkdir()


async def test_an_ensemble_brings_its_steps_and_takes_them_along(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    graphs.store(tmp_path, "n", graphs.plus(2))
    write_chain(tmp_path, "chain", "m")
    write_chain(tmp_path, "started", "n")
    async with explicit(tmp_path, "started") as channel:
        assert await added(channel, "started") == 2
        assert ("m", "1") not in await index(channel)
        await load(channel, "chain")
        assert await added(channel, "chain") == 1
        await unload(channel, "chain")
        await until(channel, {("chain", "1"): UNLOADED, ("m", "1"): READY})
        await load(channel, "chain")
        await unload(channel, "chain", unload_dependents=True)
        await until(channel, {("chain", "1"): UNLOADED, ("m", "1"): UNLOADED})


async def test_ensembles_of_each_other_are_refused_without_end(tmp_path: Path) -> None:
    write_chain(tmp_path, "a", "b")
    write_chain(tmp_path, "b", "a")
    write_chain(tmp_path, "self", "self")
    async with explicit(tmp_path) as channel:
        for model in ("a", "self"):
            await asyncio.wait_for(failure_or_nothing(load(channel, model)), 20)
            await unload(channel, model, unload_dependents=True)


async def failure_or_nothing(call: Any) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError):
        await call


async def test_explicit_with_a_star_serves_everything(tmp_path: Path) -> None:
    for name in ("a", "b"):
        graphs.store(tmp_path, name, graphs.plus(1))
    async with explicit(tmp_path, "*") as channel:
        assert await index(channel) == {("a", "1"): READY, ("b", "1"): READY}


async def test_a_client_of_kserve_names_the_model_in_the_other_field(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    async with explicit(tmp_path) as channel:
        await stub(channel).RepositoryModelLoad(pb.RepositoryModelLoadRequest(repository_name="m"))
        assert await added(channel) == 1
        both = pb.RepositoryModelLoadRequest(repository_name="r", model_name="m")
        error = await failure(stub(channel).RepositoryModelLoad(both))
        assert error.code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("mode", ["none", "poll"])
async def test_load_is_refused_unless_explicit(tmp_path: Path, mode: str) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    async with serve_directory(tmp_path, model_control_mode=mode) as channel:
        for call in (load(channel, "m"), unload(channel, "m")):
            error = await failure(call)
            assert error.code is grpc.StatusCode.UNAVAILABLE
            assert error.reason == "ERROR_REASON_MODEL_CONTROL_DISABLED"
            assert error.message == (
                "explicit model load / unload is not allowed if polling is enabled"
            )


async def test_load_needs_admin(tmp_path: Path) -> None:
    graphs.store(tmp_path, "acme.m", graphs.plus(1))
    async with explicit(tmp_path) as channel:
        request = pb.RepositoryModelLoadRequest(model_name="acme.m")
        denied = claims("acme", infer=["*"], read=["*"])
        error = await failure(stub(channel).RepositoryModelLoad(request, metadata=denied))
        assert error.code is grpc.StatusCode.PERMISSION_DENIED
        allowed = claims("acme", admin=["*"])
        await stub(channel).RepositoryModelLoad(request, metadata=allowed)


async def test_a_load_that_fails_says_why_and_leaves_what_serves(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    async with explicit(tmp_path, "m") as channel:
        error = await failure(load(channel, "nope"))
        assert error.code is grpc.StatusCode.INTERNAL
        assert error.reason == "ERROR_REASON_MODEL_LOAD_FAILED"
        assert error.message == "failed to load 'nope', failed to poll from model repository"
        (tmp_path / "m" / "1" / "model.onnx").write_bytes(b"not a graph")
        for _ in range(2):
            error = await failure(load(channel, "m"))
            assert error.code is grpc.StatusCode.INTERNAL
            assert await added(channel) == 1
            state, reason = (await index(channel))["m", "1"]
            assert state == "READY"
            assert "not reloaded" in reason
        (tmp_path / "m" / "1" / "model.onnx").write_bytes(graphs.plus(5))
        await load(channel, "m")
        assert await added(channel) == 5
        assert (await index(channel))["m", "1"] == READY


@pytest.mark.parametrize("name", ["../m", "..", ".", "a/b", "/etc", "", "x" * 300, "a\0b"])
async def test_names_never_become_paths(tmp_path: Path, name: str) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    (tmp_path / "root").mkdir()
    async with explicit(tmp_path / "root") as channel:
        error = await failure(load(channel, name))
        assert error.code is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        pytest.param("foo", "x", "INVALID_ARGUMENT", id="unknown"),
        pytest.param("config", b"{}", "INVALID_ARGUMENT", id="of the wrong kind"),
        pytest.param("file:1/model.onnx", "x", "INVALID_ARGUMENT", id="file of the wrong kind"),
        pytest.param("file:../../x", b"x", "INVALID_ARGUMENT", id="path escape"),
        pytest.param("file:/etc/x", b"x", "INVALID_ARGUMENT", id="absolute path"),
        pytest.param("file:1/model.onnx", b"x", "INVALID_ARGUMENT", id="files without config"),
        pytest.param("config", "{", "INTERNAL", id="bad JSON"),
        pytest.param("config", "[1]", "INTERNAL", id="no object"),
        pytest.param("config", '{"nope": 1}', "INTERNAL", id="unknown field"),
        pytest.param("config", '{"backend": "pytorch"}', "INTERNAL", id="another backend"),
    ],
)
async def test_bad_load_parameters_are_refused(
    tmp_path: Path, key: str, value: Any, code: str
) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    async with explicit(tmp_path, "m") as channel:
        error = await failure(load(channel, "m", **{key: value}))
        assert error.code.name == code
        assert await added(channel) == 1


async def test_load_takes_a_config_instead_of_the_file(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    write_config(tmp_path, "m", "max_batch_size: 4")
    async with explicit(tmp_path, "m") as channel:
        request = pb.ModelConfigRequest(name="m")
        assert (await stub(channel).ModelConfig(request)).config.max_batch_size == 4
        await load(channel, "m", config=json.dumps({"max_batch_size": "8"}))
        assert (await stub(channel).ModelConfig(request)).config.max_batch_size == 8
        await load(channel, "m")
        assert (await stub(channel).ModelConfig(request)).config.max_batch_size == 4


async def test_load_takes_files_instead_of_the_directory(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1), 7)
    async with explicit(tmp_path, "m") as channel:
        files = {"1/model.onnx": graphs.plus(2), "2/model.onnx": graphs.plus(3)}
        await load_files(channel, "m", '{"version_policy": {"all": {}}}', files)
        assert [await added(channel, version=v) for v in ("", "1", "2")] == [3, 2, 3]
        await until(channel, {("m", "7"): UNLOADED})
        await load_files(channel, "new", "{}", {"1/model.onnx": graphs.plus(4)})
        assert await added(channel, "new") == 4
        await load(channel, "m")
        assert await added(channel) == 1


async def test_polling_sees_new_changed_and_removed_models(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    async with serve_directory(
        tmp_path, model_control_mode="poll", repository_poll_secs=0.05
    ) as channel:
        graphs.store(tmp_path, "other", graphs.plus(9))
        graphs.store(tmp_path, "m", graphs.plus(2), 2)
        await until(channel, {("other", "1"): READY, ("m", "2"): READY, ("m", "1"): UNLOADED})
        assert await added(channel) == 2
        (tmp_path / "m" / "2" / "model.onnx").write_bytes(graphs.plus(30))

        async with asyncio.timeout(20):
            while True:
                if await added(channel) == 30:
                    break
                await asyncio.sleep(0.02)
        (tmp_path / "other").rename(tmp_path / ".other")
        await until(channel, {("other", "1"): UNLOADED})


async def test_no_call_fails_while_a_model_is_reloaded(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(0))
    async with explicit(tmp_path, "m") as channel:
        done = asyncio.Event()
        seen: list[float] = []

        async def call() -> None:
            while not done.is_set():
                seen.append(await added(channel))

        callers = [asyncio.create_task(call()) for _ in range(4)]
        for number in range(1, 6):
            (tmp_path / "m" / "1" / "model.onnx").write_bytes(graphs.plus(number))
            await load(channel, "m")
            assert await added(channel) == number
        done.set()
        await asyncio.gather(*callers)
        assert set(seen) <= set(range(6))


async def test_links_that_lead_out_are_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    graphs.store(tmp_path, "outside", graphs.plus(1))
    graphs.store(root, "file", graphs.plus(1))
    (root / "file" / "1" / "model.onnx").unlink()
    (root / "file" / "1" / "model.onnx").symlink_to(tmp_path / "outside" / "1" / "model.onnx")
    (root / "version").mkdir()
    (root / "version" / "1").symlink_to(tmp_path / "outside" / "1")
    (root / "model").symlink_to(tmp_path / "outside")
    graphs.store(root, "good", graphs.plus(1))
    (root / "good" / "2").symlink_to("1")
    async with serve_directory(root) as channel:
        listed = await index(channel)
        assert listed.pop(("good", "2")) == READY
        assert {state for state, _ in listed.values()} == {"UNAVAILABLE"}
        assert all("leads out" in reason for _, reason in listed.values())


async def test_folders_with_odd_names_are_no_models(tmp_path: Path) -> None:
    for name in ("spa ce", "tab\t", "ü", "good.name-1_A"):
        graphs.store(tmp_path, name, graphs.plus(1))
    async with serve_directory(tmp_path) as channel:
        assert await index(channel) == {("good.name-1_A", "1"): READY}


@pytest.mark.parametrize("name", ["../../x.onnx", "/etc/passwd", "a/b.onnx", ".."])
async def test_the_file_of_a_graph_is_in_the_folder_of_its_version(
    tmp_path: Path, name: str
) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    write_config(tmp_path, "m", f'default_model_filename: "{name}"')
    async with serve_directory(tmp_path) as channel:
        state, reason = (await index(channel))["m", "1"]
        assert (state, "default_model_filename" in reason) == ("UNAVAILABLE", True)


async def test_a_graph_may_have_another_file_name(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", b"", net_onnx=graphs.plus(1))
    write_config(tmp_path, "m", 'default_model_filename: "net.onnx"')
    async with serve_directory(tmp_path) as channel:
        assert await added(channel) == 1
