"""What calls through the gateway used, and how many of them run at once."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.access import Context
from servery_inference.in_flight import InFlight
from servery_rpc.errors import QuotaExceededError
from tests.inference import graphs
from tests.inference.calling import claims, infer_request, stub
from tests.inference.conftest import serve_directory

USAGE = "servery-usage"
CALLER = claims("default", infer=["*"])


def rows(count: int, model: str = "plus") -> pb.ModelInferRequest:
    return infer_request(model, {"x": np.zeros((count, 2), "<f4")})


def used(metadata: Any) -> dict[str, int]:
    text = str(dict(metadata)[USAGE])
    return {key: int(value) for key, value in (part.split("=") for part in text.split(";"))}


def batched(directory: Path, preferred: int) -> None:
    """Store a model that waits for company."""
    graphs.store(directory, "plus", graphs.plus(1))
    delay = f"max_queue_delay_microseconds: 200000 preferred_batch_size: {preferred}"
    graphs.configure(directory, "plus", f"max_batch_size: 8 dynamic_batching {{ {delay} }}")


async def test_a_call_through_the_gateway_tells_what_it_used(tmp_path: Path) -> None:
    graphs.store(tmp_path, "plus", graphs.plus(1))
    async with serve_directory(tmp_path) as channel:
        for count in (1, 3, 3, 3):  # The same again may take a shorter way.
            call = stub(channel).ModelInfer(rows(count), metadata=CALLER)
            await call
            usage = used(await call.trailing_metadata())
            assert (usage["version"], usage["rows"]) == (1, count)
            assert 0 < usage["compute_ns"] < 10**10
        direct = stub(channel).ModelInfer(rows(1))
        await direct
        assert USAGE not in dict(await direct.trailing_metadata())


async def test_a_stream_tells_the_sum_of_its_answers(tmp_path: Path) -> None:
    graphs.store(tmp_path, "plus", graphs.plus(1))
    async with serve_directory(tmp_path) as channel:
        requests = [rows(1), rows(2), rows(4), rows(1, "nope")]
        call = stub(channel).ModelStreamInfer(iter(requests), metadata=CALLER)
        assert len([answer async for answer in call]) == 4
        usage = used(await call.trailing_metadata())
        assert (usage["version"], usage["rows"]) == (1, 7)


async def test_requests_that_share_a_run_share_its_time(tmp_path: Path) -> None:
    batched(tmp_path, preferred=4)
    async with serve_directory(tmp_path) as channel:
        calls = [
            stub(channel).ModelInfer(rows(n), metadata=[*CALLER, ("servery-timing", "1")])
            for n in (1, 3)
        ]
        await asyncio.gather(*calls)
        trailing = [dict(await call.trailing_metadata()) for call in calls]
    one, three = (used(metadata) for metadata in trailing)
    assert three["compute_ns"] == pytest.approx(3 * one["compute_ns"], rel=0.01)


async def test_a_tenant_beyond_its_places_is_refused_and_gets_them_back(tmp_path: Path) -> None:
    batched(tmp_path, preferred=8)
    limit = ("x-servery-in-flight", "tenants/default=2,tenants/default/apiKeys/k=9")

    async def outcome(metadata: Any) -> grpc.StatusCode:
        try:
            await stub(channel).ModelInfer(rows(1), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    async with serve_directory(tmp_path) as channel:
        for _ in range(2):
            ended = await asyncio.gather(
                *(outcome([*CALLER, limit]) for _ in range(5)), *(outcome(CALLER) for _ in range(2))
            )
            assert ended[5:] == [grpc.StatusCode.OK] * 2
            assert sorted(code.name for code in ended[:5]) == [
                *["OK"] * 2,
                *["RESOURCE_EXHAUSTED"] * 3,
            ]


def call(limits: str) -> Context:
    class Call:
        def invocation_metadata(self) -> Any:
            return [("x-server", "x"), ("x-servery-in-flight", limits)]

    return Call()  # type: ignore[return-value]


@pytest.mark.parametrize(("processes", "places"), [(1, 3), (2, 2), (3, 1), (8, 1)])
def test_processes_share_the_places_of_a_limit(processes: int, places: int) -> None:
    in_flight, limits = InFlight(processes), "tenants/a=3"
    with ExitStack() as stack:
        for _ in range(places):
            assert in_flight.has_room(limits)
            stack.enter_context(in_flight.place(call(limits)))
        assert not in_flight.has_room(limits)
    assert in_flight.has_room(limits)


def test_a_place_is_free_again_after_a_refusal() -> None:
    in_flight = InFlight()
    one = call("tenants/a=1,tenants/a/apiKeys/k=1")
    for _ in range(2):
        with in_flight.place(one), pytest.raises(QuotaExceededError) as caught:
            in_flight.place(one).__enter__()
        assert caught.value.metadata == {"limit": "requests_in_flight"}
