"""What is counted of calls, through the real Envoy."""

from __future__ import annotations

import asyncio
import csv
import io
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import REGISTRY as METRICS

from servery.cli.platform import EnvoyAdmin
from servery.errors import ApiError
from servery.gateway.v1 import usage_pb2 as pb
from servery.gateway.v1 import usage_pb2_grpc as pb_grpc
from servery.inference.v1 import grpc_service_pb2 as oip
from servery_gateway.access_log import call_of
from servery_gateway.control_plane import control_plane
from servery_gateway.usage import Bill, Call, Sums, parse_query
from servery_gateway.usage_store import UsageStore
from servery_gateway.xds_pool import message_class
from servery_rpc.database import open_database

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder, Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

OIP = "/inference.GRPCInferenceService"
START = datetime(1970, 1, 1, tzinfo=UTC)
INFER = f"{OIP}/ModelInfer"
WHOLE = (pb.USAGE_DIMENSION_API_KEY, pb.USAGE_DIMENSION_MODEL, pb.USAGE_DIMENSION_CODE)


def query(parent: str, *group_by: Any, **more: Any) -> pb.UsageQuery:
    """Ask for the hours around now."""
    now = int(time.time())
    times = {
        "start_time": Timestamp(seconds=now - 3600),
        "end_time": Timestamp(seconds=now + 3600),
    }
    return pb.UsageQuery(parent=parent, group_by=group_by, **{**times, **more})


async def usage(stack: Stack, asked: pb.UsageQuery) -> list[pb.UsageRow]:
    stub = pb_grpc.UsageServiceStub(stack.platform)
    return list((await stub.QueryUsage(pb.QueryUsageRequest(query=asked))).rows)


def counted(stack: Stack, tenant: str, requests: int) -> Callable[[], Awaitable[bool]]:
    async def reached() -> bool:
        rows = await usage(stack, query(f"tenants/{tenant}"))
        return sum(row.requests for row in rows) >= requests

    return reached


async def test_every_call_is_counted_once_with_who_what_and_how_it_ended(
    stack: Stack, build: Builder
) -> None:
    key = await stack.new_key("metered", infer=["iris*"])
    token = await stack.exchange(key.secret)
    tensor = oip.ModelInferRequest(model_name="metered.iris", raw_input_contents=[bytes(1000)])
    for _ in range(5):
        await stack.call(INFER, token, tensor)
    await stack.call(f"{OIP}/ServerReady", token)
    for _ in range(2):
        await stack.refusal(INFER, token, oip.ModelInferRequest(model_name="metered.cats"))
    await build.until(counted(stack, "metered", 8))
    rows = await usage(stack, query("tenants/metered", *WHOLE))
    name = key.api_key.name
    assert {(r.api_key, r.model, r.code): r.requests for r in rows} == {
        (name, "tenants/metered/models/iris", 0): 5,
        (name, "", 0): 1,
        (name, "", 7): 2,
    }
    inferred = next(row for row in rows if row.model)
    assert inferred.request_bytes == 5 * (tensor.ByteSize() + 5)  # Each behind a gRPC prefix.
    assert inferred.response_bytes == 5 * 5
    assert 0 < inferred.duration.ToMicroseconds() < 60_000_000


async def test_a_request_id_that_comes_twice_is_two_calls(stack: Stack, build: Builder) -> None:
    token = await stack.token("repeating", infer=["*"])
    for _ in range(3):
        await stack.call(f"{OIP}/ServerReady", token, metadata=[("x-request-id", "same")])
    await build.until(counted(stack, "repeating", 3))


async def test_names_of_models_that_never_answered_are_not_kept(
    stack: Stack, build: Builder
) -> None:
    token = await stack.token("inventor", infer=["*"])
    for n in range(30):
        await stack.call(
            f"{OIP}/ModelReady", token, oip.ModelReadyRequest(name=f"inventor.made-up-{n}")
        )
    await build.until(counted(stack, "inventor", 30))
    rows = await usage(stack, query("tenants/inventor", pb.USAGE_DIMENSION_MODEL))
    assert [row.model for row in rows] == [""]
    labels = [
        sample.labels
        for metric in METRICS.collect()
        for sample in metric.samples
        if sample.labels.get("tenant") == "tenants/inventor"
    ]
    assert labels
    assert {label["model"] for label in labels} == {""}


async def test_usage_comes_in_buckets_and_as_csv(stack: Stack, build: Builder) -> None:
    token = await stack.token("billed", infer=["*"])
    await stack.call(INFER, token, oip.ModelInferRequest(model_name="billed.a"))
    await build.until(counted(stack, "billed", 1))
    asked = query("tenants/billed", pb.USAGE_DIMENSION_MODEL, interval=Duration(seconds=900))
    (row,) = await usage(stack, asked)
    assert row.start_time.seconds % 900 == 0
    stub = pb_grpc.UsageServiceStub(stack.platform)
    pieces = [piece.chunk async for piece in stub.ExportUsage(pb.ExportUsageRequest(query=asked))]
    (line,) = csv.DictReader(io.StringIO(b"".join(pieces).decode(), newline=""))
    assert line["model"] == "tenants/billed/models/a"
    assert line["requests"] == "1"
    assert line["start_time"].endswith("Z")


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        pytest.param({"parent": "x"}, "query.parent", id="no tenant"),
        pytest.param({"end_time": Timestamp(seconds=1)}, "query.end_time", id="end before start"),
        pytest.param({"start_time": None}, "query.start_time", id="no start"),
        pytest.param({"start_time": Timestamp(seconds=1 << 60)}, "query.start_time", id="no time"),
        pytest.param({"interval": Duration(seconds=90)}, "query.interval", id="half a minute"),
        pytest.param({"interval": Duration(seconds=-60)}, "query.interval", id="backwards"),
        pytest.param({"group_by": [0]}, "query.group_by[0]", id="no dimension"),
        pytest.param({"group_by": [1, 1]}, "query.group_by", id="twice"),
    ],
)
async def test_a_malformed_query_is_refused(
    stack: Stack, asked: dict[str, Any], field: str
) -> None:
    request = query("tenants/default")
    for name, value in asked.items():
        request.ClearField(name)  # type: ignore[arg-type]
        request.MergeFrom(pb.UsageQuery(**{name: value}))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await usage(stack, request)
    error = ApiError.of(caught.value)
    assert error.reason == "ERROR_REASON_FIELD_INVALID"
    assert error.metadata["field"] == field


@pytest.mark.parametrize(
    ("tenant", "parent", "allowed"),
    [
        pytest.param("acme", "tenants/acme", True, id="its own"),
        pytest.param("acme", "tenants/default", False, id="another's"),
        pytest.param("acme", "tenants/-", False, id="all"),
        pytest.param("default", "tenants/acme", True, id="the platform's administrator"),
        pytest.param("default", "tenants/-", True, id="who may see all"),
    ],
)
async def test_an_administrator_sees_its_tenant(
    stack: Stack, tenant: str, parent: str, allowed: bool
) -> None:
    await stack.new_key("acme", admin=["*"])
    token = await stack.token(tenant, admin=["*"])
    path = "/servery.gateway.v1.UsageService/QueryUsage"
    request = pb.QueryUsageRequest(query=query(parent))
    if allowed:
        await stack.call(path, token, request)
    else:
        error = await stack.refusal(path, token, request)
        assert error.code is grpc.StatusCode.PERMISSION_DENIED


async def test_nothing_is_lost_when_the_gateway_drains(build: Builder, own_directory: Path) -> None:
    settings = build.settings_for(own_directory)
    async with control_plane(settings), build.running_stack(settings, own_directory) as first:
        token = await first.token("drained", infer=["*"])
        await asyncio.gather(*(first.call(f"{OIP}/ServerReady", token) for _ in range(200)))
        await EnvoyAdmin(own_directory / "envoy" / "admin.sock").drain()
    async with control_plane(settings), build.running_stack(settings, own_directory) as second:
        (row,) = await usage(second, query("tenants/drained"))
        assert row.requests == 200


def call(name: bytes, **bill: Any) -> Call:
    whole = {"minute": 1, "tenant": "tenants/a", "api_key": "k", "model": "", "code": 0, **bill}
    sums = Sums(requests=1, request_bytes=2, response_bytes=3, duration_us=4)
    return Call(id=name, bill=Bill(**whole), reached_server=True, model_answered=False, sums=sums)


async def test_a_call_that_is_told_again_counts_once(own_directory: Path) -> None:
    store = UsageStore(open_database(own_directory / "gateway.db", "servery_gateway"))
    assert [c.id for c in store.add([call(b"1"), call(b"2")], 1)] == [b"1", b"2"]
    assert [c.id for c in store.add([call(b"2"), call(b"3")], 1)] == [b"3"]
    asked = parse_query(None, START, START + timedelta(hours=1), None, ("api_key",))
    (row,) = store.query(asked, 10)
    assert row.group == {"api_key": "k"}
    assert row.sums == Sums(requests=3, request_bytes=6, response_bytes=9, duration_us=12)


async def test_a_log_entry_without_anything_is_a_cancelled_call_of_nobody() -> None:
    entry = message_class("envoy.data.accesslog.v3.HTTPAccessLogEntry")()
    bill = call_of(entry).bill
    assert (bill.tenant, bill.api_key, bill.model, bill.code) == ("", "", "", 1)
