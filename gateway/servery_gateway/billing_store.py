"""Prices and budgets on disk. Every method blocks; what it wrote is durable when it returns.

An owner is the resource name of a tenant or a key; a month is named by its first day since 1970.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from servery_gateway.budget import Alert, Budget
from servery_gateway.database import (
    BudgetAlertRow,
    BudgetRow,
    PricesRow,
    UsageDayRow,
    from_us,
    to_us,
)
from servery_gateway.pricing import PRICES, Prices

EVERYBODY: Final = "tenants/-"
"""Whose prices hold for tenants without prices of their own."""

_FREE: Final = Prices()


@dataclass(frozen=True, slots=True)
class PriceList:
    """The prices of the platform."""

    by_tenant: Mapping[str, Prices]
    """`tenants/{tenant}` or `EVERYBODY` to its prices."""

    def owner(self, tenant: str) -> str:
        """Return whose prices hold for a tenant."""
        return tenant if tenant in self.by_tenant else EVERYBODY

    def of(self, tenant: str) -> Prices:
        """Return the prices that hold for a tenant."""
        return self.by_tenant.get(self.owner(tenant), _FREE)


def read_prices(session: Session) -> PriceList:
    """Return the prices as a transaction sees them."""
    return PriceList(
        {
            row.tenant: Prices(**{name: getattr(row, name) for name in PRICES})
            for row in session.scalars(select(PricesRow))
        }
    )


class BillingStore:
    """The only place that reads and writes budgets and prices. Safe to use from many threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def set_prices(self, tenant: str, prices: Prices) -> None:
        """Replace the prices of `tenants/{tenant}` or of `EVERYBODY`."""
        amounts = {name: getattr(prices, name) for name in PRICES}
        with Session(self._engine) as session, session.begin():
            session.merge(PricesRow(tenant=tenant, **amounts))

    def prices(self) -> PriceList:
        """Return all prices."""
        with Session(self._engine) as session:
            return read_prices(session)

    def set_budget(self, owner: str, budget: Budget) -> None:
        """Replace the budget of an owner."""
        row = BudgetRow(
            owner=owner,
            amount_nanos=budget.amount_nanos,
            alert_percents=",".join(str(percent) for percent in budget.alert_percents),
            hard_stop=budget.hard_stop,
        )
        with Session(self._engine) as session, session.begin():
            session.merge(row)

    def budget(self, owner: str) -> Budget:
        """Return the budget of an owner; one that was never set has no limit."""
        with Session(self._engine) as session:
            row = session.get(BudgetRow, owner)
            return Budget() if row is None else _budget(row)

    def spent_nanos(self, owner: str, month: int) -> int:
        """Return what the calls of an owner cost since the first day of a month."""
        query = select(func.coalesce(func.sum(UsageDayRow.cost_nanos), 0)).where(
            UsageDayRow.owner == owner, UsageDayRow.day >= month
        )
        with Session(self._engine) as session:
            return int(session.scalars(query).one())

    def budgets(self, month: int) -> Sequence[tuple[str, Budget, int]]:
        """Return each owner with a budget, that, and what it spent since the first of a month."""
        spent = (
            select(UsageDayRow.owner, func.sum(UsageDayRow.cost_nanos).label("nanos"))
            .where(UsageDayRow.day >= month, UsageDayRow.owner.in_(select(BudgetRow.owner)))
            .group_by(UsageDayRow.owner)
            .subquery()
        )
        query = select(BudgetRow, func.coalesce(spent.c.nanos, 0)).outerjoin(
            spent, spent.c.owner == BudgetRow.owner
        )
        with Session(self._engine) as session:
            rows = session.execute(query.where(BudgetRow.amount_nanos > 0))
            return [(row.owner, _budget(row), int(nanos)) for row, nanos in rows]

    def stopped(self, month: int) -> frozenset[str]:
        """Return the owners whose calls are refused in a month for their budget."""
        return frozenset(
            owner for owner, budget, spent in self.budgets(month) if budget.stops(spent)
        )

    def add_alert(self, alert: Alert, month: int) -> bool:
        """Store an alert, once in a month; return whether it is new."""
        key = (alert.owner, month, alert.percent)
        with Session(self._engine) as session, session.begin():
            if session.get(BudgetAlertRow, key) is not None:
                return False
            session.add(
                BudgetAlertRow(
                    owner=alert.owner, month=month, percent=alert.percent, time=to_us(alert.time)
                )
            )
            return True

    def alerts(self, owner: str, month: int) -> Sequence[Alert]:
        """Return the alerts of an owner in a month, in their order."""
        query = (
            select(BudgetAlertRow)
            .where(BudgetAlertRow.owner == owner, BudgetAlertRow.month == month)
            .order_by(BudgetAlertRow.time, BudgetAlertRow.percent)
        )
        with Session(self._engine) as session:
            return [
                Alert(row.owner, row.percent, from_us(row.time)) for row in session.scalars(query)
            ]


def _budget(row: BudgetRow) -> Budget:
    return Budget(
        amount_nanos=row.amount_nanos,
        alert_percents=tuple(int(percent) for percent in row.alert_percents.split(",") if percent),
        hard_stop=row.hard_stop,
    )
