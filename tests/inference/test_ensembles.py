"""Pipelines of models through a real channel."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest

from servery.inference.v1 import grpc_service_pb2 as pb
from tests.inference import graphs
from tests.inference.calling import answers, failure, index, infer_request, stub
from tests.inference.conftest import serve_directory


def step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> str:
    maps = [
        *[f'input_map {{ key: "{k}" value: "{v}" }}' for k, v in inputs.items()],
        *[f'output_map {{ key: "{k}" value: "{v}" }}' for k, v in outputs.items()],
    ]
    return f'step {{ model_name: "{model}" model_version: -1 {" ".join(maps)} }}'


def ensemble(root: Path, name: str, steps: list[str], outputs: tuple[str, ...] = ("y",)) -> None:
    """Write a pipeline of FP32 [batch, 2] from `x` to `outputs`."""
    io = "data_type: TYPE_FP32 dims: [2]"
    listed = " ".join(f'output {{ name: "{output}" {io} }}' for output in outputs)
    graphs.configure(
        root,
        name,
        f'platform: "ensemble" max_batch_size: 8 input {{ name: "x" {io} }} {listed}'
        f" ensemble_scheduling {{ {' '.join(steps)} }}",
    )
    (root / name / "1").mkdir()


CHAIN = [step("one", {"x": "x"}, {"y": "t"}), step("ten", {"x": "t"}, {"y": "y"})]


@pytest.fixture
def steps_root(tmp_path: Path) -> Path:
    """A directory with models that add 1 and 10."""
    graphs.store(tmp_path, "one", graphs.plus(1))
    graphs.store(tmp_path, "ten", graphs.plus(10))
    return tmp_path


async def ask(channel: grpc.aio.Channel, model: str, x: graphs.Array) -> dict[str, graphs.Array]:
    return answers(await stub(channel).ModelInfer(infer_request(model, {"x": x}), timeout=20))


async def test_steps_run_one_after_the_other_in_any_order_of_writing(steps_root: Path) -> None:
    ensemble(steps_root, "chain", CHAIN)
    ensemble(steps_root, "turned", CHAIN[::-1])
    x = np.arange(6, dtype="<f4").reshape(3, 2)
    async with serve_directory(steps_root) as channel:
        for model in ("chain", "turned"):
            assert (await ask(channel, model, x))["y"].tolist() == (x + 11).tolist()


async def test_branches_and_pipelines_of_pipelines(steps_root: Path) -> None:
    ensemble(steps_root, "chain", CHAIN)
    branches = [
        step("one", {"x": "x"}, {"y": "a"}),
        step("chain", {"x": "x"}, {"y": "b"}),
        step("ten", {"x": "b"}, {"y": "c"}),
    ]
    ensemble(steps_root, "branches", branches, ("a", "c"))
    x = np.zeros((1, 2), "<f4")
    async with serve_directory(steps_root) as channel:
        got = await ask(channel, "branches", x)
        assert {name: value[0, 0] for name, value in got.items()} == {"a": 1, "c": 21}
        many = await asyncio.gather(*[ask(channel, "branches", x + i) for i in range(30)])
        assert [got["c"][0, 0] for got in many] == [21 + i for i in range(30)]


async def test_statistics_count_the_pipeline_and_its_steps(steps_root: Path) -> None:
    ensemble(steps_root, "chain", CHAIN)
    async with serve_directory(steps_root) as channel:
        await ask(channel, "chain", np.zeros((2, 2), "<f4"))
        response = await stub(channel).ModelStatistics(pb.ModelStatisticsRequest())
        counts = {s.name: (s.inference_count, s.execution_count) for s in response.model_stats}
        assert counts == {"chain": (2, 1), "one": (2, 1), "ten": (2, 1)}


async def test_a_pipeline_describes_itself(steps_root: Path) -> None:
    ensemble(steps_root, "chain", CHAIN)
    async with serve_directory(steps_root) as channel:
        metadata = await stub(channel).ModelMetadata(pb.ModelMetadataRequest(name="chain"))
        assert [(i.name, list(i.shape)) for i in metadata.inputs] == [("x", [-1, 2])]
        assert metadata.platform == "ensemble"
        config = (await stub(channel).ModelConfig(pb.ModelConfigRequest(name="chain"))).config
        assert [s.model_name for s in config.ensemble_scheduling.step] == ["one", "ten"]


async def test_a_failure_of_a_step_is_the_failure_of_the_pipeline(tmp_path: Path) -> None:
    graphs.store(tmp_path, "pick", graphs.pick())
    graphs.configure(
        tmp_path,
        "picks",
        'platform: "ensemble" max_batch_size: 8 input { name: "x" data_type: TYPE_INT64 }'
        ' output { name: "y" data_type: TYPE_FP32 } ensemble_scheduling {'
        + step("pick", {"x": "x"}, {"y": "y"})
        + " }",
    )
    (tmp_path / "picks" / "1").mkdir()
    async with serve_directory(tmp_path) as channel:
        for row, code in ((2, None), (7, grpc.StatusCode.INVALID_ARGUMENT)):
            call = stub(channel).ModelInfer(infer_request("picks", {"x": np.array([row])}))
            if code is None:
                assert answers(await call)["y"].tolist() == [2]
            else:
                assert (await failure(call)).code is code


@pytest.mark.parametrize(
    ("steps", "named"),
    [
        pytest.param([step("nowhere", {"x": "x"}, {"y": "y"})], "nowhere", id="no such model"),
        pytest.param([step("texts", {"x": "x"}, {"y": "y"})], "BYTES", id="another datatype"),
        pytest.param([step("wide", {"x": "x"}, {"y": "y"})], "shape", id="another shape"),
        pytest.param([step("few", {"x": "x"}, {"y": "y"})], "max_batch_size", id="fewer rows"),
        pytest.param([step("one", {"x": "x"}, {"z": "y"})], "'z'", id="no such output"),
        pytest.param([step("one", {"z": "x"}, {"y": "y"})], "'z'", id="no such input"),
        pytest.param([step("two", {"a": "x"}, {"sum": "y"})], "'b'", id="an input left out"),
        pytest.param([step("bad", {"x": "x"}, {"y": "y"})], "bad", id="itself"),
    ],
)
async def test_a_pipeline_whose_models_do_not_fit_is_not_ready(
    steps_root: Path, steps: list[str], named: str
) -> None:
    graphs.store(steps_root, "texts", graphs.identity("BYTES"))
    graphs.store(steps_root, "wide", graphs.identity("FP32", ("batch", 3)))
    graphs.store(steps_root, "few", graphs.plus(1))
    graphs.configure(steps_root, "few", "max_batch_size: 4")
    graphs.store(steps_root, "two", graphs.add_and_subtract(2))
    ensemble(steps_root, "bad", steps)
    async with serve_directory(steps_root) as channel:
        state, reason = (await index(channel))["bad", "1"]
        assert state == "UNAVAILABLE"
        assert named in reason
        ready = await stub(channel).ModelReady(pb.ModelReadyRequest(name="bad"))
        assert not ready.ready


async def test_a_pipeline_comes_and_goes_with_its_models(steps_root: Path) -> None:
    ensemble(steps_root, "chain", CHAIN)
    ensemble(steps_root, "outer", [step("chain", {"x": "x"}, {"y": "y"})])
    x = np.zeros((1, 2), "<f4")
    async with serve_directory(
        steps_root, model_control_mode="explicit", load_model=("outer",)
    ) as channel:
        client = stub(channel)
        assert (await ask(channel, "outer", x))["y"].tolist() == [[11, 11]]
        await client.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="ten"))
        await settled(channel, "ten", "UNAVAILABLE")
        for name in ("chain", "outer"):
            state, reason = (await index(channel))[name, "1"]
            assert (state, "has no loaded version" in reason) == ("UNAVAILABLE", True)
            error = await failure(ask(channel, name, x))
            assert error.reason == "ERROR_REASON_MODEL_NOT_SERVED"
        await client.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="ten"))
        await settled(channel, "outer", "READY")
        assert (await ask(channel, "outer", x))["y"].tolist() == [[11, 11]]


async def test_a_pipeline_does_not_outlive_a_model_that_fits_it(steps_root: Path) -> None:
    ensemble(steps_root, "chain", CHAIN)
    async with serve_directory(
        steps_root, model_control_mode="poll", repository_poll_secs=0.05
    ) as channel:
        x = np.zeros((1, 2), "<f4")
        graphs.store(steps_root, "ten", graphs.identity("FP32", ("batch", 3)), 2)
        await settled(channel, "chain", "UNAVAILABLE")
        graphs.store(steps_root, "ten", graphs.plus(20), 3)
        await settled(channel, "chain", "READY")
        assert (await ask(channel, "chain", x))["y"].tolist() == [[21, 21]]


async def settled(channel: grpc.aio.Channel, model: str, state: str) -> None:
    async with asyncio.timeout(20):
        while (await index(channel))[model, "1"][0] != state:  # noqa: ASYNC110  no event here
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([], id="no step"),
        pytest.param([step("one", {"x": "t"}, {"y": "y"})], id="a tensor from nowhere"),
        pytest.param([step("one", {"x": "x"}, {"y": "t"})], id="an output from nowhere"),
        pytest.param(
            [step("one", {"x": "a"}, {"y": "y"}), step("one", {"x": "y"}, {"y": "a"})],
            id="a circle",
        ),
        pytest.param([CHAIN[0], CHAIN[0], CHAIN[1]], id="a tensor made twice"),
    ],
)
async def test_a_pipeline_that_cannot_run_is_not_loaded(steps_root: Path, steps: list[str]) -> None:
    ensemble(steps_root, "bad", steps)
    async with serve_directory(steps_root) as channel:
        state, reason = (await index(channel))["bad", "1"]
        assert state == "UNAVAILABLE"
        assert reason not in ("", "unloaded")
