"""What calls cost, and what happens when that is too much, through the real Envoy."""

from __future__ import annotations

import asyncio
import csv
import datetime
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from prometheus_client import REGISTRY as METRICS

from servery.errors import ApiError
from servery.gateway.v1 import billing_pb2 as pb
from servery.gateway.v1 import billing_pb2_grpc as pb_grpc
from servery.gateway.v1 import usage_pb2, usage_pb2_grpc
from servery.inference.v1 import grpc_service_pb2 as oip
from servery_gateway.budget import Budget, month_of
from servery_gateway.control_plane import control_plane
from servery_gateway.pricing import Prices
from servery_gateway.usage import Sums, day_of
from tests.gateway.test_usage import counted, query, usage

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder, Stack

pytestmark = pytest.mark.asyncio(loop_scope="session")

INFER = "/inference.GRPCInferenceService/ModelInfer"
SERVICE = "/servery.gateway.v1.BillingService"
NANOS = 10**9


def billing(stack: Stack) -> pb_grpc.BillingServiceAsyncStub:
    return pb_grpc.BillingServiceStub(stack.platform)


async def set_budget(stack: Stack, owner: str, **budget: Any) -> None:
    await billing(stack).SetBudget(pb.SetBudgetRequest(budget=pb.Budget(name=owner, **budget)))


async def budget(stack: Stack, owner: str) -> pb.GetBudgetResponse:
    return await billing(stack).GetBudget(pb.GetBudgetRequest(name=owner))


async def set_prices(stack: Stack, owner: str, **prices: int) -> None:
    await billing(stack).SetPrices(pb.SetPricesRequest(prices=pb.Prices(name=owner, **prices)))


@asynccontextmanager
async def using(stack: Stack, version: int, rows: int, compute_ns: int) -> AsyncIterator[None]:
    """Let inference say that inside the block every call used this."""
    inference = stack.backends["inference"]
    inference.trailing = (
        ("servery-usage", f"version={version};rows={rows};compute_ns={compute_ns}"),
    )
    try:
        yield
    finally:
        inference.trailing = ()


async def infer(stack: Stack, token: str, model: str) -> None:
    await stack.call(INFER, token, oip.ModelInferRequest(model_name=model))


async def test_usage_tells_versions_rows_and_computing_and_what_they_cost(
    stack: Stack, build: Builder
) -> None:
    token = await stack.token("payer", infer=["*"])
    await set_prices(
        stack,
        "tenants/payer",
        thousand_requests_nanos=2 * NANOS,
        thousand_rows_nanos=3 * NANOS,
        compute_second_nanos=5 * NANOS,
    )
    for version, rows in ((1, 10), (2, 100), (2, 100)):
        async with using(stack, version, rows, 4_000_000):
            await infer(stack, token, "payer.iris")
    await stack.refusal(INFER, token, oip.ModelInferRequest(model_name="other.iris"))
    await build.until(counted(stack, "payer", 4))
    asked = query("tenants/payer", usage_pb2.USAGE_DIMENSION_VERSION)
    sums = {row.version: row for row in await usage(stack, asked)}
    assert {version: (row.requests, row.rows) for version, row in sums.items()} == {
        0: (1, 0),
        1: (1, 10),
        2: (2, 200),
    }
    assert sums[2].compute_time.ToNanoseconds() == 8_000_000
    assert sums[0].cost_nanos == 0  # Refused.
    assert sums[1].cost_nanos == 2_000_000 + 30_000_000 + 20_000_000
    assert sums[2].cost_nanos == 2 * 2_000_000 + 600_000_000 + 40_000_000
    request = usage_pb2.ExportUsageRequest(query=query("tenants/payer"))
    stub = usage_pb2_grpc.UsageServiceStub(stack.platform)
    text = b"".join([piece.chunk async for piece in stub.ExportUsage(request)]).decode()
    (line,) = csv.DictReader(io.StringIO(text, newline=""))
    assert (line["rows"], line["compute_s"], line["cost"]) == ("210", "0.012000000", "0.696000000")


async def test_a_new_price_changes_no_old_cost(stack: Stack, build: Builder) -> None:
    token = await stack.token("repriced", infer=["*"])
    await set_prices(stack, "tenants/repriced", thousand_requests_nanos=1000 * NANOS)
    await infer(stack, token, "repriced.iris")
    await build.until(counted(stack, "repriced", 1))
    await set_prices(stack, "tenants/repriced", thousand_requests_nanos=5000 * NANOS)
    await infer(stack, token, "repriced.iris")
    await build.until(counted(stack, "repriced", 2))
    (row,) = await usage(stack, query("tenants/repriced"))
    assert row.cost_nanos == 6 * NANOS


async def test_tenants_without_prices_of_their_own_pay_those_of_everybody(stack: Stack) -> None:
    await stack.new_key("ordinary", admin=["*"])
    await set_prices(stack, "tenants/-", gigabyte_nanos=7)
    try:
        found = await billing(stack).GetPrices(pb.GetPricesRequest(name="tenants/ordinary"))
        assert found.prices == pb.Prices(name="tenants/-", gigabyte_nanos=7)
        await set_prices(stack, "tenants/ordinary", gigabyte_nanos=5)
        found = await billing(stack).GetPrices(pb.GetPricesRequest(name="tenants/ordinary"))
        assert found.prices == pb.Prices(name="tenants/ordinary", gigabyte_nanos=5)
    finally:
        await set_prices(stack, "tenants/-")


@pytest.mark.parametrize("of", ["tenant", "key"])
async def test_a_budget_alerts_once_and_then_stops_calls_until_the_month_ends(
    build: Builder, own_directory: Path, of: str
) -> None:
    settings = build.settings_for(own_directory)
    ahead = datetime.timedelta()

    def now() -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC) + ahead

    async with control_plane(settings, now), build.running_stack(settings, own_directory) as own:
        key = await own.new_key("frugal", infer=["*"])
        token = await own.exchange(key.secret)
        owner = "tenants/frugal" if of == "tenant" else key.api_key.name
        await set_prices(own, "tenants/-", thousand_requests_nanos=1000 * NANOS)
        limits = {"amount_nanos": 10 * NANOS, "alert_percents": [50, 100], "hard_stop": True}
        await set_budget(own, owner, **limits)
        for _ in range(6):
            await infer(own, token, "frugal.iris")

        async def alerted() -> bool:
            return len((await budget(own, owner)).alerts) == 1

        await build.until(alerted)
        for _ in range(4):
            await infer(own, token, "frugal.iris")

        async def refused() -> bool:
            try:
                await infer(own, token, "frugal.iris")
            except grpc.aio.AioRpcError as error:
                return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            return False

        assert await build.until(refused) < 3
        error = await own.refusal(INFER, token, oip.ModelInferRequest(model_name="frugal.iris"))
        assert error.reason == "ERROR_REASON_QUOTA_EXCEEDED"
        assert error.metadata == {"limit": "budget"}
        found = await budget(own, owner)
        assert found.spent_nanos >= 10 * NANOS
        assert [alert.percent for alert in found.alerts] == [50, 100]
        labels = {"owner": owner, "percent": "50"}
        assert METRICS.get_sample_value("servery_gateway_budget_alerts_total", labels) == 1

        ahead = datetime.timedelta(days=31)

        async def free() -> bool:
            return not await refused()

        await build.until(free)
        assert not (await budget(own, owner)).alerts


async def test_a_budget_without_a_stop_stops_nothing(stack: Stack, build: Builder) -> None:
    token = await stack.token("generous", infer=["*"])
    await set_prices(stack, "tenants/generous", thousand_requests_nanos=1000 * NANOS)
    await set_budget(stack, "tenants/generous", amount_nanos=1, alert_percents=[100])
    await infer(stack, token, "generous.iris")

    async def alerted() -> bool:
        return len((await budget(stack, "tenants/generous")).alerts) == 1

    await build.until(alerted)
    await infer(stack, token, "generous.iris")


@pytest.mark.parametrize(
    ("call", "message", "field"),
    [
        pytest.param("SetPrices", {"name": "acme"}, "prices.name", id="no tenant of prices"),
        pytest.param(
            "SetPrices",
            {"name": "tenants/-", "gigabyte_nanos": -1},
            "prices.gigabyte_nanos",
            id="negative price",
        ),
        pytest.param("SetBudget", {"name": "x"}, "budget.name", id="no owner"),
        pytest.param(
            "SetBudget",
            {"name": "tenants/default", "amount_nanos": -1},
            "budget.amount_nanos",
            id="negative budget",
        ),
        pytest.param(
            "SetBudget",
            {"name": "tenants/default", "alert_percents": [50, 0]},
            "budget.alert_percents[1]",
            id="no percentage",
        ),
        pytest.param(
            "SetBudget",
            {"name": "tenants/default", "alert_percents": [50, 50]},
            "budget.alert_percents",
            id="twice",
        ),
    ],
)
async def test_malformed_prices_and_budgets_are_refused(
    stack: Stack, call: str, message: dict[str, Any], field: str
) -> None:
    request: Any = (
        pb.SetPricesRequest(prices=pb.Prices(**message))
        if call == "SetPrices"
        else pb.SetBudgetRequest(budget=pb.Budget(**message))
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(billing(stack), call)(request)
    assert ApiError.of(caught.value).metadata["field"] == field


async def test_a_tenant_reads_what_it_pays_and_sets_only_budgets_of_its_keys(stack: Stack) -> None:
    key = await stack.new_key("reader", admin=["*"])
    token = await stack.exchange(key.secret)
    await stack.call(f"{SERVICE}/GetPrices", token, pb.GetPricesRequest(name="tenants/reader"))
    await stack.call(f"{SERVICE}/GetBudget", token, pb.GetBudgetRequest(name="tenants/reader"))
    own_key = pb.SetBudgetRequest(budget=pb.Budget(name=key.api_key.name, amount_nanos=1))
    await stack.call(f"{SERVICE}/SetBudget", token, own_key)
    for method, request in (
        ("SetBudget", pb.SetBudgetRequest(budget=pb.Budget(name="tenants/reader"))),
        ("SetPrices", pb.SetPricesRequest(prices=pb.Prices(name="tenants/reader"))),
        ("GetPrices", pb.GetPricesRequest(name="tenants/-")),
        ("GetBudget", pb.GetBudgetRequest(name="tenants/default")),
    ):
        error = await stack.refusal(f"{SERVICE}/{method}", token, request)
        assert error.code is grpc.StatusCode.PERMISSION_DENIED
    log = await asyncio.to_thread((stack.settings.data_dir / "audit.jsonl").read_text)
    assert '"act": "SetBudget"' in log


def sums(**amounts: int) -> Sums:
    none = {"requests": 0, "request_bytes": 0, "response_bytes": 0, "duration_us": 0}
    return Sums(**{**none, **amounts})


@pytest.mark.parametrize(
    ("prices", "amounts", "cost"),
    [
        pytest.param({"thousand_requests_nanos": 1000}, {"requests": 3}, 3, id="requests"),
        pytest.param({"thousand_rows_nanos": 1000}, {"rows": 3}, 3, id="rows"),
        pytest.param({"compute_second_nanos": 10**9}, {"compute_ns": 3}, 3, id="computing"),
        pytest.param(
            {"gigabyte_nanos": 10**9}, {"request_bytes": 1, "response_bytes": 2}, 3, id="bytes"
        ),
        pytest.param({"thousand_rows_nanos": 1}, {"rows": 499}, 0, id="less than half"),
        pytest.param({"thousand_rows_nanos": 1}, {"rows": 500}, 1, id="half"),
    ],
)
async def test_cost_is_amounts_times_prices(
    prices: dict[str, int], amounts: dict[str, int], cost: int
) -> None:
    assert Prices(**prices).cost_nanos(sums(**amounts)) == cost


@pytest.mark.parametrize(("spent", "reached"), [(49, ()), (50, (50,)), (120, (50, 100))])
async def test_a_budget_knows_which_shares_are_reached(spent: int, reached: tuple[int]) -> None:
    assert Budget(amount_nanos=100, alert_percents=(50, 100)).reached(spent) == reached


async def test_a_month_begins_on_its_first_day_in_utc() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    time = datetime.datetime(2026, 3, 1, 1, tzinfo=zone)  # Still February in UTC.
    assert month_of(time) == day_of(datetime.datetime(2026, 2, 1, tzinfo=datetime.UTC))
