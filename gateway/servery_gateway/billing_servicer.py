"""servery.gateway.v1.BillingService: parse, call, render."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

from typing import Any

import grpc

from servery.gateway.v1 import billing_pb2 as pb
from servery.gateway.v1 import billing_pb2_grpc as pb_grpc
from servery_gateway.billing import Billing
from servery_gateway.billing_store import EVERYBODY
from servery_gateway.budget import Alert, Budget, parse_budget
from servery_gateway.pricing import PRICES, Prices, parse_prices
from servery_gateway.quota import Owner, parse_owner
from servery_gateway.render import timestamp
from servery_rpc.identity import caller_of
from servery_rpc.names import DEFAULT_TENANT, TenantName

Context = grpc.aio.ServicerContext


class BillingServicer(pb_grpc.BillingServiceServicer):
    """Sets and tells prices and budgets."""

    def __init__(self, billing: Billing) -> None:
        self._billing = billing

    async def SetPrices(
        self, request: pb.SetPricesRequest, context: Context[Any, Any]
    ) -> pb.SetPricesResponse:
        """See billing.proto."""
        caller_of(context).require("admin", DEFAULT_TENANT)
        tenant = _parse_priced(request.prices.name, "prices.name")
        prices = parse_prices(**{name: getattr(request.prices, name) for name in PRICES})
        await self._billing.set_prices(tenant, prices)
        return pb.SetPricesResponse(prices=_prices(request.prices.name, prices))

    async def GetPrices(
        self, request: pb.GetPricesRequest, context: Context[Any, Any]
    ) -> pb.GetPricesResponse:
        """See billing.proto."""
        tenant = _parse_priced(request.name, "name")
        caller_of(context).require("admin", tenant.tenant if tenant else DEFAULT_TENANT)
        owner, prices = await self._billing.prices(tenant)
        return pb.GetPricesResponse(prices=_prices(owner, prices))

    async def SetBudget(
        self, request: pb.SetBudgetRequest, context: Context[Any, Any]
    ) -> pb.SetBudgetResponse:
        """See billing.proto."""
        owner = parse_owner(request.budget.name, "budget.name")
        # A tenant must not lift its own budget.
        of_tenant = isinstance(owner, TenantName)
        caller_of(context).require("admin", DEFAULT_TENANT if of_tenant else owner.tenant)
        budget = parse_budget(
            request.budget.amount_nanos,
            request.budget.alert_percents,
            hard_stop=request.budget.hard_stop,
        )
        await self._billing.set_budget(owner, budget)
        return pb.SetBudgetResponse(budget=_budget(owner, budget))

    async def GetBudget(
        self, request: pb.GetBudgetRequest, context: Context[Any, Any]
    ) -> pb.GetBudgetResponse:
        """See billing.proto."""
        owner = parse_owner(request.name, "name")
        caller_of(context).require("admin", owner.tenant)
        budget, spent_nanos, alerts = await self._billing.budget(owner)
        return pb.GetBudgetResponse(
            budget=_budget(owner, budget),
            spent_nanos=spent_nanos,
            alerts=[_alert(alert) for alert in alerts],
        )


def _parse_priced(name: str, field: str) -> TenantName | None:
    return None if name == EVERYBODY else TenantName.parse(name, field)


def _prices(owner: str, prices: Prices) -> pb.Prices:
    return pb.Prices(name=owner, **{name: getattr(prices, name) for name in PRICES})


def _budget(owner: Owner, budget: Budget) -> pb.Budget:
    return pb.Budget(
        name=str(owner),
        amount_nanos=budget.amount_nanos,
        alert_percents=budget.alert_percents,
        hard_stop=budget.hard_stop,
    )


def _alert(alert: Alert) -> pb.BudgetAlert:
    return pb.BudgetAlert(percent=alert.percent, time=timestamp(alert.time))
