"""What hostile callers get, through the real Envoy, and what is written down of acts."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from servery.gateway.v1 import (
    billing_pb2,
    billing_pb2_grpc,
    quota_pb2,
    quota_pb2_grpc,
    usage_pb2,
)
from servery.gateway.v1 import gateway_pb2 as pb
from servery.gateway.v1 import gateway_pb2_grpc as pb_grpc
from servery.inference.v1 import grpc_service_pb2 as oip
from servery_gateway import audit
from servery_gateway.envoy import admin
from servery_gateway.methods import GATEWAY, methods
from tests.gateway.test_usage import counted, query, usage

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder, Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

INFER = "/inference.GRPCInferenceService/ModelInfer"
DENIED = grpc.StatusCode.PERMISSION_DENIED
CREATE_KEY = "/servery.gateway.v1.ApiKeyService/CreateApiKey"


async def raw(stack: Stack, message: bytes, token: str) -> grpc.StatusCode:
    """Send any bytes as an inference request."""
    stack.backends["inference"].metadata.clear()
    call: Any = stack.channel.unary_unary(INFER)
    try:
        await call(message, metadata=[("authorization", f"Bearer {token}")], timeout=20)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_of_two_model_fields_the_one_that_the_server_reads_counts(stack: Stack) -> None:
    token = await stack.token(infer=["digits"])
    own, foreign = (
        oip.ModelInferRequest(model_name=name).SerializeToString() for name in ("digits", "cats")
    )
    assert await raw(stack, own + foreign, token) is DENIED
    assert not stack.backends["inference"].metadata
    assert await raw(stack, foreign + own, token) is grpc.StatusCode.OK
    assert stack.backends["inference"].metadata[INFER]["x-servery-model"] == "digits"


@pytest.mark.parametrize(
    "message", [b"\xff" * 50, b"\x00" * 50, bytes(range(256)) * 4], ids=["ones", "zeros", "all"]
)
async def test_garbage_does_not_reach_inference(stack: Stack, message: bytes) -> None:
    token = await stack.token(infer=["*"])
    assert await raw(stack, message, token) in (DENIED, grpc.StatusCode.INVALID_ARGUMENT)
    assert not stack.backends["inference"].metadata


async def test_a_client_that_never_sends_is_let_go_and_stops_nobody(stack: Stack) -> None:
    address = stack.settings.public_address
    silent = socket.create_connection((address.host, address.port))
    half = socket.create_connection((address.host, address.port))
    half.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\nhost: x\r\n")
    try:
        await stack.call(
            INFER, await stack.token(infer=["*"]), oip.ModelInferRequest(model_name="a")
        )
        half.settimeout(30)
        answer = await asyncio.to_thread(half.recv, 100)
        assert b"408" in answer.partition(b"\r\n")[0]
    finally:
        silent.close()
        half.close()


async def test_headers_larger_than_the_limit_are_refused(stack: Stack) -> None:
    token = await stack.token(infer=["*"])
    with pytest.raises(grpc.aio.AioRpcError):
        await stack.call(
            "/inference.GRPCInferenceService/ServerReady",
            token,
            metadata=[("x-large", "x" * 100_000)],
        )
    await stack.call("/inference.GRPCInferenceService/ServerReady", token)


@pytest.mark.slow
async def test_ten_thousand_unknown_names_leave_nothing_behind(
    stack: Stack, build: Builder
) -> None:
    token = await stack.token("flood", infer=["known"])
    stats = await num_stats(stack)

    async def ask(first: int) -> None:
        for n in range(first, first + 500):
            error = await stack.refusal(
                INFER, token, oip.ModelInferRequest(model_name=f"flood.unknown-{n}")
            )
            assert error.code is DENIED

    await asyncio.gather(*(ask(first) for first in range(0, 10_000, 500)))
    await build.until(counted(stack, "flood", 10_000))
    (row,) = await usage(stack, query("tenants/flood", usage_pb2.USAGE_DIMENSION_MODEL))
    assert row.model == ""
    assert row.requests == 10_000
    assert await num_stats(stack) - stats < 100


async def num_stats(stack: Stack) -> int:
    _, text = await asyncio.to_thread(admin, stack.directory / "envoy", "GET", "/stats")
    return len(text.splitlines())


async def test_every_act_is_written_down_without_its_secret(stack: Stack) -> None:
    administrator = await stack.new_key("audited", admin=["*"])
    token = await stack.exchange(administrator.secret)
    permission = pb.Permission(verb=pb.VERB_READ, models=["*"])
    request = pb.CreateApiKeyRequest(
        parent="tenants/audited", api_key=pb.ApiKey(display_name="CI", permissions=[permission])
    )
    created = await pb_grpc.ApiKeyServiceStub(stack.channel).CreateApiKey(
        request, metadata=[("authorization", f"Bearer {token}")]
    )
    request.parent = "tenants/default"
    await stack.refusal(CREATE_KEY, token, request)
    log = stack.settings.data_dir / "audit.jsonl"
    text = await asyncio.to_thread(Path.read_text, log)
    acts = [json.loads(line) for line in text.splitlines()]
    mine = [act for act in acts if act["by"] == administrator.api_key.name]
    assert [(act["act"], act["outcome"]) for act in mine] == [
        ("CreateApiKey", "OK"),
        ("CreateApiKey", "ERROR_REASON_PERMISSION_DENIED"),
    ]
    wanted = {
        "display_name": "CI",
        "permissions": [{"verb": "VERB_READ", "models": ["*"]}],
    }
    assert mine[0]["request"] == {"parent": "tenants/audited", "api_key": wanted}
    stored = mine[0]["response"]["api_key"]
    assert stored["name"] == created.api_key.name
    assert wanted.items() <= stored.items()
    for secret in (created.secret, administrator.secret, token):
        assert secret not in text
    assert log.stat().st_mode & 0o077 == 0


async def test_acts_tell_what_was_set(stack: Stack) -> None:
    await stack.new_key("recorded", infer=["*"])
    name = "tenants/recorded"
    quota = quota_pb2.Quota(name=name, requests_per_second=7)
    prices = billing_pb2.Prices(name=name, thousand_rows_nanos=5)
    budget = billing_pb2.Budget(name=name, amount_nanos=9, hard_stop=True)
    quotas = quota_pb2_grpc.QuotaServiceStub(stack.platform)
    billing = billing_pb2_grpc.BillingServiceStub(stack.platform)
    await quotas.SetQuota(quota_pb2.SetQuotaRequest(quota=quota))
    await billing.SetPrices(billing_pb2.SetPricesRequest(prices=prices))
    await billing.SetBudget(billing_pb2.SetBudgetRequest(budget=budget))
    text = await asyncio.to_thread((stack.settings.data_dir / "audit.jsonl").read_text)
    acts = [json.loads(line) for line in text.splitlines()]
    told = {act["act"]: act["request"] for act in acts if name in json.dumps(act["request"])}
    assert told["SetQuota"] == {"quota": {"name": name, "requests_per_second": 7}}
    assert told["SetPrices"] == {"prices": {"name": name, "thousand_rows_nanos": "5"}}
    assert told["SetBudget"] == {"budget": {"name": name, "amount_nanos": "9", "hard_stop": True}}


async def test_an_act_that_json_cannot_tell_is_written_down_too(stack: Stack) -> None:
    key = pb.ApiKey(
        display_name="beyond all years",
        permissions=[pb.Permission(verb=pb.VERB_READ, models=["*"])],
        expire_time=Timestamp(seconds=1 << 60),
    )
    request = pb.CreateApiKeyRequest(parent="tenants/default", api_key=key)
    error = await stack.refusal(CREATE_KEY, await stack.token(admin=["*"]), request)
    assert error.metadata["field"] == "api_key.expire_time"
    text = await asyncio.to_thread((stack.settings.data_dir / "audit.jsonl").read_text)
    acts = [json.loads(line) for line in text.splitlines()]
    assert "beyond all years" in acts[-1]["request"]["api_key"]
    assert acts[-1]["outcome"] == "ERROR_REASON_FIELD_INVALID"


async def test_every_method_that_changes_something_is_an_act() -> None:
    changing = {
        method.name
        for method in methods()
        if method.upstream == GATEWAY and not method.name.startswith(("Get", "List", "Query"))
    }
    reading = {"ExchangeApiKey", "ExportUsage", "ServerReflectionInfo"}
    assert changing - reading == set(audit.ACTS)
