"""Sets prices and budgets, and watches what is spent."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final

from prometheus_client import Counter

from servery_gateway.background import in_thread
from servery_gateway.billing_store import EVERYBODY, BillingStore
from servery_gateway.budget import Alert, Budget, month_of
from servery_gateway.pricing import Prices
from servery_gateway.quota import Owner
from servery_gateway.store import Store
from servery_rpc.errors import ServeryError
from servery_rpc.names import TenantName

log = logging.getLogger(__name__)

_FOLLOW_EVERY_S: Final = 0.5

_ALERTS: Final = Counter(
    "servery_gateway_budget_alerts_total",
    "Alerts of budgets that were raised",
    ["owner", "percent"],
)


class Billing:
    """Sets prices and budgets. Safe to use from one event loop.

    Args:
        store: Knows the tenants and keys.
        billing: Keeps prices and budgets.
        refresh: Returns once the data plane works by what the stores hold.
        now: Returns the time.
    """

    def __init__(
        self,
        store: Store,
        billing: BillingStore,
        refresh: Callable[[], Awaitable[None]],
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._billing = billing
        self._refresh = refresh
        self._now = now

    async def set_prices(self, tenant: TenantName | None, prices: Prices) -> None:
        """Replace the prices of a tenant; None: of those without prices of their own.

        Raises:
            TenantNotFoundError: There is no such tenant.
        """
        if tenant is not None:
            await asyncio.to_thread(self._store.tenant, tenant)
        owner = EVERYBODY if tenant is None else str(tenant)
        await asyncio.to_thread(self._billing.set_prices, owner, prices)

    async def prices(self, tenant: TenantName | None) -> tuple[str, Prices]:
        """Return the prices that hold for a tenant, and whose they are.

        Raises:
            TenantNotFoundError: There is no such tenant.
        """
        if tenant is not None:
            await asyncio.to_thread(self._store.tenant, tenant)
        found = await asyncio.to_thread(self._billing.prices)
        name = EVERYBODY if tenant is None else str(tenant)
        return found.owner(name), found.of(name)

    async def set_budget(self, owner: Owner, budget: Budget) -> None:
        """Replace a budget.

        Raises:
            TenantNotFoundError: There is no such tenant.
            ApiKeyNotFoundError: There is no such key.
        """
        await asyncio.to_thread(self._store.require, owner)
        await asyncio.to_thread(self._billing.set_budget, str(owner), budget)

    async def budget(self, owner: Owner) -> tuple[Budget, int, Sequence[Alert]]:
        """Return a budget, what was spent of it this month, and the alerts of this month.

        Raises:
            TenantNotFoundError: There is no such tenant.
            ApiKeyNotFoundError: There is no such key.
        """
        await asyncio.to_thread(self._store.require, owner)
        month = month_of(self._now())
        return (
            await asyncio.to_thread(self._billing.budget, str(owner)),
            await asyncio.to_thread(self._billing.spent_nanos, str(owner), month),
            await asyncio.to_thread(self._billing.alerts, str(owner), month),
        )

    async def follow(self) -> None:
        """Raise alerts, and refuse who has spent its budget, until cancelled."""
        refused: frozenset[str] = frozenset()
        while True:
            await asyncio.sleep(_FOLLOW_EVERY_S)
            try:
                stopped = await in_thread(self._look)
                if stopped != refused:
                    await self._refresh()
                    refused = stopped
            except ServeryError as error:
                log.error("budgets are not in force: %s", error)

    def _look(self) -> frozenset[str]:
        """Raise what alerts are due; return whose calls are to be refused."""
        now = self._now()
        month = month_of(now)
        stopped = set()
        for owner, budget, spent in self._billing.budgets(month):
            for percent in budget.reached(spent):
                if self._billing.add_alert(Alert(owner, percent, now), month):
                    _ALERTS.labels(owner, str(percent)).inc()
                    log.warning("budget_alert: %s has spent %d %% of its budget", owner, percent)
            if budget.stops(spent):
                stopped.add(owner)
        return frozenset(stopped)
