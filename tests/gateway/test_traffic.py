"""What passes once it is allowed, through the real Envoy: big messages, uploads, streams, TLS."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from servery.inference.v1 import grpc_service_pb2 as oip
from servery.inference.v1 import grpc_service_pb2_grpc as oip_grpc
from servery.trainer.v1 import dataset_pb2, dataset_pb2_grpc, training_pb2, training_pb2_grpc
from servery_gateway.control_plane import control_plane
from tests.gateway.certificates import write_certificate

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder, Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

MIB = 1 << 20
INFER = "/inference.GRPCInferenceService/ModelInfer"
UPLOAD = "/servery.trainer.v1.DatasetService/CreateDataset"
WATCH = "/servery.trainer.v1.TrainingService/WatchTrainingJob"


def authorized(token: str) -> Any:
    return [("authorization", f"Bearer {token}")]


async def test_a_tensor_of_32_mib_passes(stack: Stack) -> None:
    token = await stack.token(infer=["digits"])
    request = oip.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(32 * MIB)])
    await stack.call(INFER, token, request)


async def test_a_tensor_larger_than_the_window_is_refused(stack: Stack) -> None:
    token = await stack.token(infer=["digits"])
    request = oip.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(65 * MIB)])
    error = await stack.refusal(INFER, token, request)
    assert error.code in (
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )


async def test_an_upload_larger_than_any_buffer_passes(stack: Stack) -> None:
    chunk = dataset_pb2.CreateDatasetRequest(chunk=os.urandom(MIB))

    async def chunks() -> AsyncIterator[dataset_pb2.CreateDatasetRequest]:
        for _ in range(160):
            yield chunk

    stub = dataset_pb2_grpc.DatasetServiceStub(stack.channel)
    await stub.CreateDataset(chunks(), metadata=authorized(await stack.token(train=["*"])))
    assert stack.backends["trainer"].num_requests[UPLOAD] == 160


async def test_messages_flow_both_ways_on_one_stream(stack: Stack) -> None:
    token = await stack.token(infer=["digits"])
    stub = oip_grpc.GRPCInferenceServiceStub(stack.channel)
    call: Any = stub.ModelStreamInfer(metadata=authorized(token))
    for _ in range(3):
        await call.write(oip.ModelInferRequest(model_name="digits"))
        assert isinstance(await call.read(), oip.ModelStreamInferResponse)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_a_watch_reads_before_it_ends(stack: Stack) -> None:
    trainer = stack.backends["trainer"]
    trainer.hold = asyncio.Event()
    token = await stack.token(read=["*"])
    stub = training_pb2_grpc.TrainingServiceStub(stack.channel)
    call: Any = stub.WatchTrainingJob(
        training_pb2.WatchTrainingJobRequest(), metadata=authorized(token)
    )
    assert isinstance(await call.read(), training_pb2.WatchTrainingJobResponse)
    assert not call.done()
    trainer.hold.set()
    assert await call.read() is grpc.aio.EOF
    trainer.hold = None


async def test_the_deadline_of_the_caller_reaches_the_server(stack: Stack) -> None:
    token = await stack.token(infer=["*"])
    await stack.call(INFER, token, oip.ModelInferRequest(model_name="digits"))
    remaining_s = stack.backends["inference"].time_remaining_s[INFER]
    assert remaining_s is not None
    assert 0 < remaining_s < 21  # It travels rounded up.


async def test_with_a_certificate_envoy_speaks_tls(build: Builder, own_directory: Path) -> None:
    certificate, key = own_directory / "tls.crt", own_directory / "tls.key"
    write_certificate(certificate, key)
    settings = build.settings_for(
        own_directory, public_tls_certificate=certificate, public_tls_key=key
    )
    trust = grpc.ssl_channel_credentials(certificate.read_bytes())
    async with (
        control_plane(settings),
        build.running_stack(settings, own_directory, trust) as secured,
    ):
        token = await secured.token(infer=["*"])
        await secured.call(INFER, token, oip.ModelInferRequest(model_name="digits"))
        async with grpc.aio.insecure_channel(settings.public_listen) as plain:
            call: Any = plain.unary_unary("/grpc.health.v1.Health/Check")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"", timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
