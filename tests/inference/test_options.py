"""How a config asks a model to be run, and what all models together may use."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import text_format

from servery.inference.v1 import grpc_service_pb2 as pb
from servery.inference.v1 import model_config_pb2 as config_pb
from servery_inference.accelerators import OptionsUnsupportedError, accelerators
from servery_inference.budget import BudgetedExecutor, MemoryLedger, ThreadBudget
from servery_inference.engine import LoadFailedError
from servery_inference.options import EngineSettings, ModelOptions
from servery_inference.warmup import batch_sizes
from tests.inference import graphs
from tests.inference.calling import answers, failure, index, infer_request, stub
from tests.inference.conftest import serve_directory
from tests.inference.test_control import explicit, load, until
from tests.inference.test_model_config import write_config

X = np.zeros((1, 2), "<f4")
READY = ("READY", "")
UNLOADED = ("UNAVAILABLE", "unloaded")


def options(text: str, settings: EngineSettings | None = None, cores: int = 4) -> ModelOptions:
    config = text_format.Parse(text, config_pb.ModelConfig())
    return ModelOptions.of(config, replace(settings or EngineSettings(), cores=cores))


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def gpu_accelerator(name: str, **parameters: str) -> str:
    given = "".join(f'parameters {{ key: "{k}" value: "{v}" }}' for k, v in parameters.items())
    return (
        "optimization { execution_accelerators { gpu_execution_accelerator {"
        f' name: "{name}" {given} }} }} }}'
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", (4, 1, False), id="as many instances as cores"),
        pytest.param("instance_group { count: 2 }", (2, 1, False), id="instances as said"),
        pytest.param("instance_group { kind: KIND_CPU }", (4, 1, False), id="a kind alone"),
        pytest.param(
            "instance_group { count: 2 } instance_group { count: 3 }", (5, 1, False), id="groups"
        ),
        pytest.param(parameter("intra_op_thread_count", "2"), (2, 2, False), id="two threads"),
        pytest.param(parameter("intra_op_thread_count", "0"), (1, 4, False), id="all threads"),
        pytest.param(
            parameter("intra_op_thread_count", "64"), (1, 4, False), id="no more than all"
        ),
        pytest.param(parameter("execution_mode", "1"), (4, 1, True), id="parallel"),
    ],
)
def test_a_config_says_how_to_run(text: str, expected: tuple[int, int, bool]) -> None:
    got = options(text)
    assert (got.instances, got.intra_op_threads, got.parallel) == expected


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (0, ort.GraphOptimizationLevel.ORT_ENABLE_ALL),
        (-1, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC),
        (1, ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
        (2, ort.GraphOptimizationLevel.ORT_DISABLE_ALL),
    ],
)
def test_the_levels_are_those_of_triton(level: int, expected: ort.GraphOptimizationLevel) -> None:
    asked = options(f"optimization {{ graph {{ level: {level} }} }}").session_options()
    assert asked.graph_optimization_level == expected
    assert asked.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize(
    "text",
    [
        "instance_group { kind: KIND_GPU } instance_group { kind: KIND_CPU }",
        "instance_group { passive: true }",
        "instance_group { gpus: 0 }",
        parameter("execution_mode", "2"),
        parameter("inter_op_thread_count", "-1"),
        parameter("enable_mem_arena", "maybe"),
        parameter("io_binding", "2"),
        "optimization { cuda { graphs: true } }",
        gpu_accelerator("tensorrt"),
        gpu_accelerator("cuda"),
        gpu_accelerator("openvino"),
        gpu_accelerator("tensorrt").replace("gpu_", "cpu_"),
    ],
)
def test_what_cannot_be_done_is_refused(text: str) -> None:
    with pytest.raises(OptionsUnsupportedError):
        options(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", {}, id="nothing"),
        pytest.param(
            gpu_accelerator("cuda", use_tf32="false", cudnn_conv_algo_search="1"),
            {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
            id="by accelerator",
        ),
        pytest.param(
            parameter("gpu_mem_limit", "1000") + parameter("arena_extend_strategy", "1"),
            {"gpu_mem_limit": "1000", "arena_extend_strategy": "kSameAsRequested"},
            id="by parameter",
        ),
    ],
)
def test_options_of_cuda_are_those_of_triton(text: str, expected: dict[str, str]) -> None:
    config = text_format.Parse(text, config_pb.ModelConfig())
    cuda, tensorrt = accelerators(config, "cuda")
    assert (dict(cuda), tensorrt) == (expected, None)


@pytest.mark.parametrize("key", ["trt_extra_plugin_lib_paths", "device_id", "has_user_compute"])
def test_an_option_that_is_not_offered_is_refused(key: str) -> None:
    config = text_format.Parse(gpu_accelerator("cuda", **{key: "1"}), config_pb.ModelConfig())
    with pytest.raises(OptionsUnsupportedError, match=key):
        accelerators(config, "cuda")


@pytest.mark.parametrize(
    "text",
    [
        parameter("intra_op_thread_count", "2"),
        parameter("io_binding", "1"),
        parameter("execution_mode", "1") + parameter("inter_op_thread_count", "2"),
        parameter("enable_mem_arena", "0") + parameter("enable_mem_pattern", "0"),
        parameter("session.set_denormal_as_zero", "1"),
        "optimization { graph { level: 2 } }",
        "instance_group { count: 2 kind: KIND_CPU }",
        "max_batch_size: 6 dynamic_batching { preferred_batch_size: [3] }",
        (
            'max_batch_size: 8 model_warmup { name: "w" batch_size: 4 count: 2'
            ' inputs { key: "x" value { data_type: TYPE_FP32 dims: 784 random_data: true } } }'
        ),
        (
            'max_batch_size: 8 model_warmup { name: "w"'
            ' inputs { key: "x" value { data_type: TYPE_FP32 dims: 784 zero_data: true } } }'
        ),
    ],
)
async def test_answers_do_not_depend_on_how_a_model_runs(tmp_path: Path, text: str) -> None:
    graphs.store(tmp_path, "plain", graphs.dense())
    graphs.store(tmp_path, "m", graphs.dense())
    write_config(tmp_path, text)
    x = np.random.default_rng(0).normal(size=(5, 784)).astype("<f4")
    async with serve_directory(tmp_path) as channel:
        assert (await index(channel))["m", "1"] == READY
        got = [
            answers(await stub(channel).ModelInfer(infer_request(model, {"x": x})))["y"]
            for model in ("plain", "m")
        ]
    np.testing.assert_allclose(got[0], got[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "sample",
    [
        'batch_size: 9 inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 zero_data: true } }',
        'inputs { key: "nope" value { data_type: TYPE_FP32 dims: 2 zero_data: true } }',
        'inputs { key: "x" value { data_type: TYPE_FP32 dims: 3 zero_data: true } }',
        'inputs { key: "x" value { data_type: TYPE_INT32 dims: 2 zero_data: true } }',
        'inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 input_data_file: "../../x" } }',
        'inputs { key: "x" value { data_type: TYPE_FP32 dims: 1099511627776 zero_data: true } }',
        'inputs { key: "x" value { dims: 2 zero_data: true } }',
    ],
)
async def test_a_warm_up_that_cannot_be_run_fails_the_load(tmp_path: Path, sample: str) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    write_config(tmp_path, f'max_batch_size: 8 model_warmup {{ name: "w" {sample} }}')
    async with serve_directory(tmp_path) as channel:
        state, reason = (await index(channel))["m", "1"]
        assert (state, "model_warmup 'w'" in reason) == ("UNAVAILABLE", True)


async def test_warm_up_may_read_a_file(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.pick())
    write_config(
        tmp_path,
        'max_batch_size: 8 model_warmup { name: "w" inputs { key: "x" value {'
        ' data_type: TYPE_INT64 input_data_file: "row" } } }',
    )
    (tmp_path / "m" / "warmup").mkdir()
    (tmp_path / "m" / "warmup" / "row").write_bytes(np.array([2], "<i8").tobytes())
    async with serve_directory(tmp_path) as channel:
        assert (await index(channel))["m", "1"] == READY


@pytest.mark.parametrize(
    ("largest", "preferred", "expected"),
    [
        (1, (), [1]),
        (8, (), [1, 2, 4, 8]),
        (6, (3,), [1, 2, 3, 4, 6]),
    ],
)
def test_every_bucket_is_warmed(
    largest: int, preferred: tuple[int, ...], expected: list[int]
) -> None:
    assert batch_sizes(largest, preferred) == expected


async def test_models_beyond_the_memory_limit_are_refused_with_numbers(tmp_path: Path) -> None:
    graphs.store(tmp_path, "a", graphs.dense(0))
    graphs.store(tmp_path, "b", graphs.dense(1))
    size = (tmp_path / "a" / "1" / "model.onnx").stat().st_size
    limit = size * 3 // 2
    async with explicit(tmp_path, "a", model_memory_limit_bytes=limit) as channel:
        error = await failure(load(channel, "b"))
        assert error.reason == "ERROR_REASON_MODEL_LOAD_FAILED"
        for number in (size, limit, limit - size):
            assert str(number) in error.message
        await stub(channel).RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="a"))
        await until(channel, {("a", "1"): UNLOADED})
        for _ in range(3):  # What an attempt reserved is given back.
            await load(channel, "b")
            await stub(channel).RepositoryModelUnload(
                pb.RepositoryModelUnloadRequest(model_name="b")
            )
            await until(channel, {("b", "1"): UNLOADED})


def test_the_ledger_gives_back() -> None:
    ledger = MemoryLedger(10)
    ledger.reserve(6)
    with pytest.raises(LoadFailedError):
        ledger.reserve(5)
    ledger.release(6)
    ledger.reserve(10)
    assert ledger.used_bytes == 10


async def test_runs_never_hold_more_cores_than_there_are() -> None:
    budget = ThreadBudget(3)
    lock, running, most = threading.Lock(), [0], [0]
    together, busy = threading.Barrier(3), threading.Event()

    def work(num_threads: int) -> None:
        with lock:
            running[0] += num_threads
            most[0] = max(most[0], running[0])
        if num_threads == 1:
            together.wait(5)
        else:
            busy.wait(0.005)  # Never set: a run takes its time.
        with lock:
            running[0] -= num_threads

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(8) as threads:
        narrow, wide = (BudgetedExecutor(threads, budget, n) for n in (1, 2))
        runs = [loop.run_in_executor(narrow, work, 1) for _ in range(3)]
        runs += [loop.run_in_executor(wide, work, 2) for _ in range(20)]
        runs += [loop.run_in_executor(BudgetedExecutor(threads, budget, 9), work, 3)]
        await asyncio.wait_for(asyncio.gather(*runs), 20)
    assert most[0] == 3
