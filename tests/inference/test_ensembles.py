"""Pipelines of models through a real channel."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from pathlib import Path
from typing import Any

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


async def test_a_failure_of_a_step_is_the_failure_of_the_pipeline(steps_root: Path) -> None:
    graphs.store(steps_root, "texts", graphs.identity("BYTES"))
    ensemble(steps_root, "gone", [step("nowhere", {"x": "x"}, {"y": "y"})])
    ensemble(steps_root, "typed", [step("texts", {"x": "x"}, {"y": "y"})])
    ensemble(steps_root, "named", [step("one", {"x": "x"}, {"z": "y"})])
    request: dict[str, Any] = {"x": np.zeros((1, 2), "<f4")}
    async with serve_directory(steps_root) as channel:
        reasons = {}
        for model in ("gone", "typed", "named"):
            error = await failure(stub(channel).ModelInfer(infer_request(model, request)))
            reasons[model] = error.reason.removeprefix("ERROR_REASON_")
        assert reasons == {
            "gone": "MODEL_NOT_SERVED",
            "typed": "INFERENCE_REQUEST_INVALID",
            "named": "INFERENCE_REQUEST_INVALID",
        }


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
