"""How much of a tenant may be in flight: the real inference server behind the real Envoy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from google.rpc.error_details_pb2 import QuotaFailure, RetryInfo
from grpc_status import rpc_status

from servery.errors import ApiError
from servery.gateway.v1 import quota_pb2, quota_pb2_grpc
from servery.inference.v1 import grpc_service_pb2 as oip
from servery_gateway import methods
from servery_gateway.control_plane import control_plane
from tests.gateway.asking import ask
from tests.inference import graphs

if TYPE_CHECKING:
    from tests.gateway.conftest import Stack

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

INFER = "/inference.GRPCInferenceService/ModelInfer"
TURNS = 200_000
"""Of the graph's loop: more than a tenth of a second."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stack(module_directory: Path) -> AsyncIterator[Stack]:
    from tests.gateway import conftest

    models = module_directory / "models"
    for name in ("acme.slow", "other.slow"):
        graphs.store(models, name, graphs.patient())
    grpc_door, http_door = (f"unix:{module_directory}/{d}.sock" for d in ("inference", "http"))
    settings = conftest.settings_for(module_directory, inference_http=http_door)
    argv = ("--model-repository", str(models), "--listen", grpc_door, "--http-listen", http_door)
    log = module_directory / "inference.log"
    servers = (methods.REGISTRY, methods.TRAINER)
    with conftest.process("servery_inference", *argv, log=log):
        async with (
            control_plane(settings),
            conftest.running_stack(settings, module_directory, upstreams=servers) as running,
        ):
            yield running


def request(tenant: str) -> oip.ModelInferRequest:
    tensor = oip.ModelInferRequest.InferInputTensor(name="x", datatype="INT64", shape=[1])
    return oip.ModelInferRequest(
        model_name=f"{tenant}.slow",
        inputs=[tensor],
        raw_input_contents=[np.array([TURNS], "<i8").tobytes()],
    )


async def infer(stack: Stack, token: str, tenant: str = "acme") -> grpc.aio.AioRpcError | None:
    try:
        answer = await stack.call(INFER, token, request(tenant))
    except grpc.aio.AioRpcError as error:
        return error
    assert np.frombuffer(answer.raw_output_contents[0], "<i8") == [TURNS]
    return None


async def set_quota(stack: Stack, name: str, in_flight: int) -> None:
    quota = quota_pb2.Quota(name=name, requests_in_flight=in_flight)
    stub = quota_pb2_grpc.QuotaServiceStub(stack.platform)
    await stub.SetQuota(quota_pb2.SetQuotaRequest(quota=quota))


async def test_the_third_call_at_once_is_refused_and_the_others_answer(stack: Stack) -> None:
    first, second = [await stack.token("acme", infer=["*"]) for _ in range(2)]
    other = await stack.token("other", infer=["*"])
    await set_quota(stack, "tenants/acme", 2)
    await infer(stack, first)  # The connection is there.
    *ends, of_other = await asyncio.gather(
        infer(stack, first),
        infer(stack, first),
        infer(stack, second),
        infer(stack, other, "other"),
    )
    (refused,) = [end for end in ends if end is not None]
    assert of_other is None
    error = ApiError.of(refused)
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == "ERROR_REASON_QUOTA_EXCEEDED"
    assert error.metadata == {"limit": "requests_in_flight"}
    status: Any = rpc_status.from_call(refused)
    retry, failure = RetryInfo(), QuotaFailure()
    assert any(detail.Unpack(retry) for detail in status.details)
    assert any(detail.Unpack(failure) for detail in status.details)
    assert retry.retry_delay.ToTimedelta()
    assert failure.violations[0].subject == "requests_in_flight"
    assert await infer(stack, second) is None  # Places are free again.
    await set_quota(stack, "tenants/acme", 0)
    assert await asyncio.gather(*(infer(stack, first) for _ in range(3))) == [None] * 3


async def test_calls_over_rest_take_the_same_places(stack: Stack) -> None:
    key = await stack.new_key("acme", infer=["*"])
    token = await stack.exchange(key.secret)
    await set_quota(stack, key.api_key.name, 1)
    tensor = {"name": "x", "datatype": "INT64", "shape": [1], "data": [TURNS]}
    body = json.dumps({"inputs": [tensor]}).encode()

    async def over_rest() -> tuple[int, bytes]:
        path = "/v2/models/acme.slow/infer"
        status, _, answer = await ask(stack, "POST", path, body, authorization=f"Bearer {token}")
        return status, answer

    (ended, *asked) = await asyncio.gather(infer(stack, token), over_rest(), over_rest())
    refusals = [answer for status, answer in asked if status == HTTPStatus.TOO_MANY_REQUESTS]
    assert len(refusals) + (ended is not None) == 2
    for answer in refusals:
        assert "quota" in json.loads(answer)["error"]
