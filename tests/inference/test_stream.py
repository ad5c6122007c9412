"""ModelStreamInfer through the wire: order, errors as messages, and who may ask for what."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.stream import MAX_IN_FLIGHT
from tests.inference import graphs
from tests.inference.calling import answers, claims, failure, infer_request, stub
from tests.inference.conftest import serve_directory

PATH = "/inference.GRPCInferenceService/ModelStreamInfer"
Metadata = Sequence[tuple[str, str]]


def plus_request(number: int, model: str = "plus") -> pb.ModelInferRequest:
    x = np.full((1, 2), number, "<f4")
    return infer_request(model, {"x": x}, id=str(number))


async def exchange(
    channel: grpc.aio.Channel, requests: Sequence[Any], metadata: Metadata = ()
) -> list[pb.ModelStreamInferResponse]:
    call = stub(channel).ModelStreamInfer(iter(requests), metadata=metadata)
    return [response async for response in call]


async def test_answers_keep_the_order_of_requests_of_any_length(channel: grpc.aio.Channel) -> None:
    requests = []
    for number in range(40):
        width = 120_000 if number % 5 == 0 else 1  # Long runs leave the event loop, others stay.
        x = np.full((1, width), number, "<f4")
        requests.append(infer_request("free", {"x": x}, id=str(number)))
    responses = await exchange(channel, requests)
    assert [r.infer_response.id for r in responses] == [str(n) for n in range(40)]
    for number, response in enumerate(responses):
        assert answers(response.infer_response)["y"][0, 0] == number
        assert response.infer_response.parameters["triton_final_response"].bool_param
        assert response.infer_response.model_version == "1"


async def test_a_failed_request_is_a_message_and_the_stream_goes_on(
    channel: grpc.aio.Channel,
) -> None:
    good = infer_request("identity_fp32", {"x": np.ones((1, 2), "<f4")}, id="good")
    requests = [
        good,
        infer_request("nope", {"x": np.ones((1, 2), "<f4")}, id="unknown"),
        infer_request("identity_fp32", {"x": np.ones((1, 3), "<f4")}, id="shape"),
        infer_request("pick", {"x": np.array([7])}, id="values"),
        good,
    ]
    requests[2].parameters["triton_enable_empty_final_response"].bool_param = True
    responses = await exchange(channel, requests)
    assert [r.infer_response.id for r in responses] == [
        "good", "unknown", "shape", "values", "good",
    ]  # fmt: skip
    assert [bool(r.error_message) for r in responses] == [False, True, True, True, False]
    assert not responses[1].infer_response.model_name
    assert responses[1].error_message == "Request for unknown model: 'nope' is not found"
    assert answers(responses[4].infer_response)["y"].tolist() == [[1.0, 1.0]]


async def test_a_message_that_cannot_be_parsed_is_answered_with_its_id(
    channel: grpc.aio.Channel,
) -> None:
    bad = infer_request("identity_fp32", {"x": np.ones((1, 2), "<f4")}, id="bad")
    bad.parameters["timeout"].string_param = "soon"
    untyped: Any = channel
    call = untyped.stream_stream(PATH)(iter([b"\xff", bad.SerializeToString()]))
    responses = [pb.ModelStreamInferResponse.FromString(raw) async for raw in call]
    assert [r.infer_response.id for r in responses] == ["", "bad"]
    assert all(r.error_message for r in responses)


async def test_a_failure_ends_a_stream_that_asks_for_it(channel: grpc.aio.Channel) -> None:
    requests = [infer_request("pick", {"x": np.array([n])}, id=str(n)) for n in (0, 7, 1)]
    metadata = [("triton_grpc_error", "true")]
    call = stub(channel).ModelStreamInfer(iter(requests), metadata=metadata)
    reading = aiter(call)
    assert (await anext(reading)).infer_response.id == "0"
    error = await failure(anext(reading))
    assert error.reason == "ERROR_REASON_INFERENCE_REQUEST_INVALID"


async def test_the_model_of_every_message_is_checked(tmp_path: Path) -> None:
    for name in ("plus", "minus", "acme.plus"):
        graphs.store(tmp_path, name, graphs.plus(1))
    requests = [plus_request(1), plus_request(2, "minus"), plus_request(3, "acme.plus")]
    async with serve_directory(tmp_path) as channel:
        by_gateway = await exchange(channel, requests, [("x-servery-model", "plus")])
        assert [bool(r.error_message) for r in by_gateway] == [False, True, True]
        by_claims = await exchange(channel, requests, claims("default", infer=["plus"]))
        assert [bool(r.error_message) for r in by_claims] == [False, True, True]


async def test_who_does_not_read_answers_is_not_read_from(root: Path) -> None:
    sent = 0
    begun = asyncio.Event()
    x = np.zeros((1, 1 << 18), "<f4")  # 1 MiB
    total = 4 * MAX_IN_FLIGHT

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        nonlocal sent
        while sent < total:
            sent += 1
            if sent > MAX_IN_FLIGHT // 2:
                begun.set()
            yield infer_request("free", {"x": x})

    # Without probes, only 64 KiB of answers are on their way to who does not read them.
    options = [("grpc.http2.bdp_probe", 0)]
    async with serve_directory(root, options) as channel:
        call = stub(channel).ModelStreamInfer(requests())
        await asyncio.wait_for(begun.wait(), 20)
        other = infer_request("identity_fp32", {"x": np.zeros((1, 2), "<f4")})
        for _ in range(200):  # Others are served meanwhile, which gives the stream its time.
            await stub(channel).ModelInfer(other)
        assert sent < total
        failures = [response.error_message async for response in call if response.error_message]
        assert not failures
        assert sent == total


async def test_a_stream_that_is_cut_off_leaves_nothing_behind(tmp_path: Path) -> None:
    graphs.store(tmp_path, "endless", graphs.endless())
    graphs.store(tmp_path, "plus", graphs.plus(1))
    async with serve_directory(tmp_path) as channel:
        forever = infer_request("endless", {"x": np.array([1 << 62])})
        while True:  # The runs are ended, or this would not come to an end.
            call = stub(channel).ModelStreamInfer(iter([plus_request(1), forever, forever]))
            await anext(aiter(call))
            call.cancel()  # Perhaps before a run began.
            request = pb.ModelStatisticsRequest(name="endless")
            (found,) = (await stub(channel).ModelStatistics(request)).model_stats
            if found.inference_stats.fail.count >= 1:
                break
        (response,) = await exchange(channel, [plus_request(5)])
        assert answers(response.infer_response)["y"][0, 0] == 6
