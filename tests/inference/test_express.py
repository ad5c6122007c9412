"""Requests that look like ones before, through a real channel: answered alike, or refused alike."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import REGISTRY

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference import express
from servery_inference.access import MODEL_HEADER
from servery_inference.forms import Reply
from servery_inference.in_flight import InFlight
from servery_inference.metering import USAGE_HEADER
from servery_inference.rpcs import SERVICE
from servery_inference.servable import Servable
from tests.inference import graphs
from tests.inference.batchers import plus_servable
from tests.inference.calling import answers, claims, failure, infer_request, stub
from tests.inference.conftest import serve_directory

X = np.array([[1, 2]], "<f4")


async def test_every_caller_gets_the_answer_to_its_own_request(channel: grpc.aio.Channel) -> None:
    xs = [np.random.default_rng(seed).normal(size=(1, 784)).astype("<f4") for seed in range(40)]
    requests = [infer_request("dense", {"x": x}, id=str(seed)) for seed, x in enumerate(xs)]
    alone = [await stub(channel).ModelInfer(request) for request in requests]
    for _ in range(5):
        got = await asyncio.gather(*[stub(channel).ModelInfer(request) for request in requests])
        assert [response.id for response in got] == [request.id for request in requests]
        for response, expected in zip(got, alone, strict=True):
            assert np.allclose(answers(response)["y"], answers(expected)["y"], atol=1e-4)


async def runs(channel: grpc.aio.Channel) -> dict[int, int]:
    """How often `dense` ran on each number of rows."""
    response = await stub(channel).ModelStatistics(pb.ModelStatisticsRequest(name="dense"))
    (statistics,) = response.model_stats
    assert statistics.inference_count == statistics.inference_stats.success.count
    return {batch.batch_size: batch.compute_infer.count for batch in statistics.batch_stats}


async def test_requests_that_come_together_share_runs(channel: grpc.aio.Channel) -> None:
    request = infer_request("dense", {"x": np.ones((1, 784), "<f4")})
    async with asyncio.timeout(30):
        while True:
            await asyncio.gather(*[stub(channel).ModelInfer(request) for _ in range(32)])
            if max(await runs(channel)) > 1:
                break


async def test_one_that_does_not_fit_is_refused_and_no_other(channel: grpc.aio.Channel) -> None:
    good = infer_request("dense", {"x": np.ones((1, 784), "<f4")})
    short = infer_request("dense", {"x": np.ones((1, 784), "<f4")})
    short.raw_input_contents[0] = short.raw_input_contents[0][:-4]
    for _ in range(3):
        calls = [stub(channel).ModelInfer(request) for request in (*[good] * 5, short, *[good] * 5)]
        got = await asyncio.gather(*calls, return_exceptions=True)
        codes = [r.code() for r in got if isinstance(r, grpc.aio.AioRpcError)]
        assert codes == [grpc.StatusCode.INVALID_ARGUMENT]
        assert isinstance(got[5], grpc.aio.AioRpcError)


async def test_one_that_the_graph_refuses_is_refused_and_no_other(
    channel: grpc.aio.Channel,
) -> None:
    good, bad = [infer_request("pick", {"x": np.array([row], "<i8")}) for row in (2, 7)]
    for _ in range(3):
        calls = [stub(channel).ModelInfer(request) for request in (*[good] * 5, bad, *[good] * 5)]
        got = await asyncio.gather(*calls, return_exceptions=True)
        refused = got.pop(5)
        assert isinstance(refused, grpc.aio.AioRpcError)
        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
        good_answers = [r for r in got if isinstance(r, pb.ModelInferResponse)]
        assert [answers(response)["y"].tolist() for response in good_answers] == [[2.0]] * 10


async def test_who_may_not_is_refused_though_others_asked_the_same(
    channel: grpc.aio.Channel,
) -> None:
    request = infer_request("dense", {"x": np.ones((1, 784), "<f4")}, id="a")
    await stub(channel).ModelInfer(request)
    allowed, denied = claims("default", infer=["dense"]), claims("default", infer=["simple"])
    call = stub(channel).ModelInfer(request, metadata=allowed)
    assert (await call).id == "a"
    assert "version=1;rows=1;" in dict(await call.trailing_metadata())[USAGE_HEADER]
    for_another = [*allowed, (MODEL_HEADER, "simple")]
    error = await failure(stub(channel).ModelInfer(request, metadata=for_another))
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    error = await failure(stub(channel).ModelInfer(request, metadata=denied))
    assert error.code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_new_version_answers_what_the_old_one_did(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    request = infer_request("m", {"x": X})
    async with serve_directory(
        tmp_path, model_control_mode="explicit", load_model=("m",)
    ) as channel:
        response = await stub(channel).ModelInfer(request)
        assert answers(response)["y"].tolist() == [[2, 3]]
        graphs.store(tmp_path, "m", graphs.plus(5), version=2)
        await stub(channel).RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="m"))
        response = await stub(channel).ModelInfer(request)
        assert (response.model_version, answers(response)["y"].tolist()) == ("2", [[6, 7]])
        await stub(channel).RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="m"))
        error = await failure(stub(channel).ModelInfer(request))
        assert error.code is grpc.StatusCode.NOT_FOUND


async def test_requests_that_differ_only_in_what_they_ask_for_are_told_apart(
    tmp_path: Path,
) -> None:
    for model, added in (("a", 1), ("b", 5)):
        graphs.store(tmp_path, model, graphs.plus(added))
    async with serve_directory(tmp_path) as channel:
        for _ in range(3):
            for model, added in (("a", 1), ("b", 5)):
                response = await stub(channel).ModelInfer(infer_request(model, {"x": X}))
                assert response.model_name == model
                assert answers(response)["y"].tolist() == (X + added).tolist()


class OneModel:
    """A repository of one version that never changes."""

    def __init__(self, servable: Servable) -> None:
        self._servable = servable

    def find(self, model: str, version: str) -> Servable:
        return self._servable

    def on_change(self, listener: Callable[[], None]) -> None:
        pass


async def test_runs_for_many_leave_the_event_loop_to_others_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(express, "SHORT_S", 0.0)
    message = infer_request("m", {"x": X}).SerializeToString()
    turns: list[str] = []
    done = asyncio.Event()

    def deliver(reply: Reply | None) -> None:
        turns.append("answer" if reply else "refusal")
        if turns.count("answer") == 39:  # All but the first, which is answered at once.
            done.set()

    def others() -> None:
        turns.append("others")
        if not done.is_set():
            asyncio.get_running_loop().call_soon(others)

    with plus_servable(tmp_path) as servable:
        repository: Any = OneModel(servable)
        short = express.Express(repository, InFlight())
        ways = [short.answer(message, (), None, deliver) for _ in range(40)]
        asyncio.get_running_loop().call_soon(others)
        await asyncio.wait_for(done.wait(), 20)
    assert not isinstance(ways[0], express.Way)
    assert set(ways[1:]) == {express.Way.LATER}
    rows = [len(list(run)) for kind, run in itertools.groupby(turns) if kind == "answer"]
    assert rows == [8, 8, 8, 8, 7]


def counted(code: str) -> float:
    labels = {"method": f"/{SERVICE}/ModelInfer", "code": code}
    return REGISTRY.get_sample_value("servery_grpc_requests_total", labels) or 0.0


async def test_calls_are_counted_however_they_are_answered(channel: grpc.aio.Channel) -> None:
    before = counted("OK"), counted("INVALID_ARGUMENT")
    good = infer_request("dense", {"x": np.ones((1, 784), "<f4")})
    await asyncio.gather(*[stub(channel).ModelInfer(good) for _ in range(20)])
    await failure(stub(channel).ModelInfer(infer_request("dense", {"x": X})))
    async with asyncio.timeout(10):  # A status is sent before its call is counted.
        while (counted("OK") - before[0], counted("INVALID_ARGUMENT") - before[1]) != (20, 1):
            await stub(channel).ServerLive(pb.ServerLiveRequest())
