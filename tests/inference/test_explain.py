"""Explanations through real channels: another graph answers, and all around it is the same."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.cores import usable_cores
from servery_inference.metering import USAGE_HEADER
from tests.inference import graphs
from tests.inference.asking_http import LENGTH, serving_http, tensor
from tests.inference.calling import answers, claims, failure, index, infer_request, stub
from tests.inference.conftest import serve_directory
from tests.inference.test_admission import bomb
from tests.inference.test_ensembles import CHAIN, ensemble
from tests.inference.test_sequences import CONFIG, LONG_US

UNAVAILABLE = "ERROR_REASON_EXPLANATION_UNAVAILABLE"
INVALID = "ERROR_REASON_INFERENCE_REQUEST_INVALID"
X = np.array([[1, 2], [3, 4]], "<f4")
PARTS = [[10, 20], [30, 40]]
TOTAL = [[30], [70]]


def explain_request(
    x: graphs.Array = X, outputs: tuple[str, ...] = (), model: str = "m", **fields: Any
) -> pb.ModelInferRequest:
    request = infer_request(model, {"x": x}, outputs, **fields)
    request.parameters["explain"].bool_param = True
    return request


@asynccontextmanager
async def serving(root: Path, config: str = "", **flags: Any) -> AsyncIterator[grpc.aio.Channel]:
    """Serve `m`, which adds 1 and explains by multiplying by 10."""
    graphs.store(root, "m", graphs.plus(1), explain_onnx=graphs.parts())
    if config:
        graphs.configure(root, "m", config)
    async with serve_directory(root, **flags) as channel:
        yield channel


@pytest.fixture
async def explained(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    async with serving(tmp_path) as channel:
        yield channel


def plain(response: pb.ModelInferResponse) -> dict[str, Any]:
    return {name: array.tolist() for name, array in answers(response).items()}


async def test_the_parameter_decides_which_graph_answers(explained: grpc.aio.Channel) -> None:
    for _ in range(3):  # Known forms, too.
        told = await stub(explained).ModelInfer(explain_request(id="7"))
        assert (told.id, told.model_name, told.model_version) == ("7", "m", "1")
        assert plain(told) == {"parts": PARTS, "total": TOTAL}
        only = await stub(explained).ModelInfer(explain_request(outputs=("total",)))
        assert plain(only) == {"total": TOTAL}
        answer = await stub(explained).ModelInfer(infer_request("m", {"x": X}))
        assert plain(answer) == {"y": (X + 1).tolist()}
        not_told = explain_request()
        not_told.parameters["explain"].bool_param = False
        assert plain(await stub(explained).ModelInfer(not_told)) == plain(answer)


async def test_explanations_and_answers_share_a_stream(explained: grpc.aio.Channel) -> None:
    requests = [infer_request("m", {"x": X}), explain_request(), infer_request("m", {"x": X})]
    got = [r.infer_response async for r in stub(explained).ModelStreamInfer(iter(requests))]
    assert [list(plain(response)) for response in got] == [["y"], ["parts", "total"], ["y"]]


async def test_outputs_are_those_of_the_graph_that_is_asked(explained: grpc.aio.Channel) -> None:
    for request in (
        explain_request(outputs=("y",)),
        infer_request("m", {"x": X}, ("parts",)),
        explain_request(X[:, :1]),
    ):
        error = await failure(stub(explained).ModelInfer(request))
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, INVALID)


@pytest.mark.parametrize(
    "value", [{"int64_param": 1}, {"string_param": "true"}, {"double_param": 1}, {}], ids=str
)
async def test_the_parameter_is_a_truth(explained: grpc.aio.Channel, value: Any) -> None:
    request = infer_request("m", {"x": X})
    request.parameters["explain"].CopyFrom(pb.InferParameter(**value))
    error = await failure(stub(explained).ModelInfer(request))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, INVALID)


async def test_what_cannot_explain_says_so(tmp_path: Path) -> None:
    graphs.store(tmp_path, "one", graphs.plus(1), explain_onnx=graphs.parts())
    graphs.store(tmp_path, "ten", graphs.plus(10))
    ensemble(tmp_path, "chain", CHAIN)
    graphs.store(tmp_path, "sum", graphs.running_sum())
    graphs.configure(tmp_path, "sum", CONFIG % ("direct {}", LONG_US))
    async with serve_directory(tmp_path) as channel:
        for model in ("ten", "chain", "sum"):
            x = np.ones((1, 1), "<i4") if model == "sum" else X
            error = await failure(stub(channel).ModelInfer(explain_request(x, model=model)))
            assert error.code is grpc.StatusCode.FAILED_PRECONDITION
            assert error.reason == UNAVAILABLE
            assert error.metadata == {"model": model, "version": "1"}
        error = await failure(stub(channel).ModelInfer(explain_request(model="nope")))
        assert error.code is grpc.StatusCode.NOT_FOUND


async def test_json_and_binary_tensors_over_http(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1), explain_onnx=graphs.parts())
    async with serving_http(tmp_path) as client:
        given = tensor("x", "FP32", [2, 2], data=X.tolist())
        asked = {"inputs": [given], "parameters": {"explain": True}}
        answer = await client.post("/v2/models/m/infer", asked)
        assert answer["outputs"] == [
            tensor("parts", "FP32", [2, 2], data=[10, 20, 30, 40]),
            tensor("total", "FP32", [2, 1], data=[30, 70]),
        ]
        binary = {**asked, "outputs": [{"name": "total", "parameters": {"binary_data": True}}]}
        answer = await client("POST", "/v2/models/m/versions/1/infer", binary)
        assert (
            answer.body[int(answer.headers[LENGTH.lower()]) :]
            == np.array([30, 70], "<f4").tobytes()
        )
        for model, value, code in (("m", 1, 400), ("m", "true", 400), ("free", True, 400)):
            refused = {"inputs": [given], "parameters": {"explain": value}}
            assert (await client("POST", f"/v2/models/{model}/infer", refused)).status == code


TOGETHER = "max_batch_size: 8 dynamic_batching { preferred_batch_size: [4] %s }"
DELAY = "max_queue_delay_microseconds: 300000"


async def test_explanations_share_runs_with_each_other_alone(tmp_path: Path) -> None:
    async with serving(tmp_path, TOGETHER % DELAY) as channel:
        asked = [infer_request("m", {"x": X[:1]}), explain_request(X[:1])] * 3
        calls = [stub(channel).ModelInfer(request, timeout=30) for request in asked]
        got = [plain(response) for response in await asyncio.gather(*calls)]
        assert got == [{"y": [[2, 3]]}, {"parts": [[10, 20]], "total": [[30]]}] * 3
        response = await stub(channel).ModelStatistics(pb.ModelStatisticsRequest(name="m"))
        (counted,) = response.model_stats
        assert {b.batch_size: b.compute_infer.count for b in counted.batch_stats} == {3: 2}
        assert (counted.inference_count, counted.inference_stats.success.count) == (6, 6)


async def test_explanations_wait_in_a_queue_of_their_own(tmp_path: Path) -> None:
    never = "max_queue_delay_microseconds: 60000000 default_queue_policy { max_queue_size: 1 }"
    async with serving(tmp_path, TOGETHER % never) as channel:
        calls = [
            asyncio.ensure_future(failure(stub(channel).ModelInfer(explain_request(), timeout=30)))
            for _ in range(2)
        ]
        done, (waiting,) = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert done.pop().result().reason == "ERROR_REASON_QUEUE_FULL"
        answer = stub(channel).ModelInfer(infer_request("m", {"x": X}), timeout=0.5)
        assert (await failure(answer)).code is grpc.StatusCode.DEADLINE_EXCEEDED  # It waits, too.
        waiting.cancel()


async def test_who_may_infer_may_ask_why_and_is_billed_alike(explained: grpc.aio.Channel) -> None:
    call = stub(explained).ModelInfer(explain_request(), metadata=claims("default", infer=["m"]))
    await call
    assert "version=1;rows=2;compute_ns=" in dict(await call.trailing_metadata())[USAGE_HEADER]
    denied = claims("default", infer=["other"], read=["m"])
    error = await failure(stub(explained).ModelInfer(explain_request(), metadata=denied))
    assert error.code is grpc.StatusCode.PERMISSION_DENIED


async def test_the_config_tells_what_explanations_hold(explained: grpc.aio.Channel) -> None:
    asked = pb.ModelConfigRequest(name="m")
    config = (await stub(explained).ModelConfig(asked)).config
    assert [output.name for output in config.output] == ["y"]
    assert json.loads(config.parameters["explanation"].string_value) == {
        "outputs": [
            {"name": "parts", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "total", "datatype": "FP32", "shape": [-1, 1]},
        ]
    }


async def test_kept_answers_and_explanations_are_told_apart(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1), explain_onnx=graphs.plus(5))  # Both give `y`.
    graphs.configure(tmp_path, "m", "max_batch_size: 8 response_cache { enable: true }")
    async with serve_directory(tmp_path, response_cache_bytes=1 << 20) as channel:
        for _ in range(2):
            answer = await stub(channel).ModelInfer(infer_request("m", {"x": X}))
            told = await stub(channel).ModelInfer(explain_request())
            assert (plain(answer)["y"], plain(told)["y"]) == ((X + 1).tolist(), (X + 5).tolist())
        response = await stub(channel).ModelStatistics(pb.ModelStatisticsRequest(name="m"))
        assert response.model_stats[0].inference_stats.cache_hit.count == 2


async def test_runs_of_both_graphs_take_turns_at_a_resource(tmp_path: Path) -> None:
    limiter = 'rate_limiter { resources { name: "R" global: true count: 1 } }'
    config = f"max_batch_size: 8 instance_group {{ count: 1 kind: KIND_CPU {limiter} }}"
    async with serving(tmp_path, config, rate_limit="execution_count") as channel:
        calls = [
            stub(channel).ModelInfer(request, timeout=30)
            for request in [infer_request("m", {"x": X}), explain_request()] * 20
        ]
        got = [list(plain(response)) for response in await asyncio.gather(*calls)]
        assert got == [["y"], ["parts", "total"]] * 20


@pytest.mark.skipif(usable_cores() < 2, reason="there is one thread for runs")
async def test_explanations_that_do_not_end_leave_threads_to_answers(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.patient(), explain_onnx=graphs.patient())
    graphs.configure(tmp_path, "m", "max_batch_size: 0")
    async with serve_directory(tmp_path) as channel:
        endless = [
            stub(channel).ModelInfer(explain_request(np.array([2**62])))
            for _ in range(usable_cores())
        ]
        for number in (1, 300_000):  # The second takes more than a moment.
            request = infer_request("m", {"x": np.array([number])})
            response = await stub(channel).ModelInfer(request, timeout=30)
            assert plain(response) == {"y": [number]}
        assert not any(call.done() for call in endless)
        for call in endless:
            call.cancel()


GOLDEN_X = np.arange(6, dtype=np.float32).reshape(3, 2)
WRONG = {"parts": GOLDEN_X * 10 + 1, "total": (GOLDEN_X * 10).sum(1, keepdims=True)}
ANSWERS = {"y": GOLDEN_X + 2}


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"explain_onnx": b"no graph"}, id="no graph"),
        pytest.param({"explain_onnx": graphs.identity("FP32", ("n", 3))}, id="other shape"),
        pytest.param({"explain_onnx": graphs.add_and_subtract()}, id="other names"),
        pytest.param({"explain_onnx": graphs.identity("FP64")}, id="other datatype"),
        pytest.param({"explain_onnx": graphs.identity("FP32", (2, 2))}, id="no batch"),
        pytest.param(
            {
                "explain_onnx": graphs.parts(),
                "golden_npz": graphs.npz({"x": GOLDEN_X}, ANSWERS, explanations=WRONG),
            },
            id="other golden rows",
        ),
        pytest.param(
            {"golden_npz": graphs.npz({"x": GOLDEN_X}, ANSWERS, explanations=WRONG)},
            id="golden rows of what is not there",
        ),
    ],
)
async def test_a_version_with_a_broken_explanation_replaces_nothing(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    async with serving(tmp_path, model_control_mode="explicit", load_model=("m",)) as channel:
        graphs.store(tmp_path, "m", graphs.plus(2), version=2, **files)
        load = pb.RepositoryModelLoadRequest(model_name="m")
        error = await failure(stub(channel).RepositoryModelLoad(load))
        assert error.reason == "ERROR_REASON_MODEL_LOAD_FAILED"
        state, reason = (await index(channel))["m", "2"]
        assert state == "UNAVAILABLE"
        assert "explain.onnx" in reason
        assert plain(await stub(channel).ModelInfer(explain_request()))["parts"] == PARTS


async def test_attributions_differ_by_a_share_of_the_largest_of_them(tmp_path: Path) -> None:
    x = np.array([[1e6, 0]], np.float32)
    for model, difference in (("near", 1.0), ("far", 1e4)):
        told = {"parts": np.array([[1e7, difference]], np.float32), "total": x[:, :1] * 10}
        golden = graphs.npz({"x": x}, {"y": x + 1}, explanations=told)
        graphs.store(
            tmp_path, model, graphs.plus(1), explain_onnx=graphs.parts(), golden_npz=golden
        )
    async with serve_directory(tmp_path) as channel:
        states = await index(channel)
        assert states["near", "1"][0] == "READY"
        assert states["far", "1"][0] == "UNAVAILABLE"


async def test_a_graph_that_explains_is_opened_where_it_does_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    for name, data in graphs.explained_plus_bundle(1).items():
        (folder / name).write_bytes(data)
    graphs.store(tmp_path, "bad", graphs.plus(1), explain_onnx=bomb())
    memory_bytes = 2 << 30
    async with serve_directory(
        tmp_path, admission_wall_s=30, admission_memory_bytes=memory_bytes
    ) as channel:
        assert plain(await stub(channel).ModelInfer(explain_request()))["parts"] == PARTS
        state, reason = (await index(channel))["bad", "1"]
        assert state == "UNAVAILABLE"
        assert reason.startswith("explain.onnx: the graph ")


async def test_a_model_that_keeps_state_cannot_have_an_explanation(tmp_path: Path) -> None:
    graphs.store(tmp_path, "sum", graphs.running_sum(), explain_onnx=graphs.running_sum())
    graphs.configure(tmp_path, "sum", CONFIG % ("direct {}", LONG_US))
    async with serve_directory(tmp_path) as channel:
        state, reason = (await index(channel))["sum", "1"]
        assert (state, "sequences" in reason) == ("UNAVAILABLE", True)


async def test_memory_is_accounted_for_both_graphs(tmp_path: Path) -> None:
    explain = graphs.parts()
    graphs.store(tmp_path, "m", graphs.plus(1), explain_onnx=explain)
    size = sum(path.stat().st_size for path in (tmp_path / "m" / "1").iterdir())
    async with serve_directory(tmp_path, model_memory_limit_bytes=size - 1) as channel:
        assert (await index(channel))["m", "1"][0] == "UNAVAILABLE"
    async with serve_directory(tmp_path, model_memory_limit_bytes=size) as channel:
        assert (await index(channel))["m", "1"][0] == "READY"
