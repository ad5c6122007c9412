"""Budgets: how much the calls of one month may cost. Pure: no clock, no database."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from servery_gateway.usage import day_of
from servery_rpc.errors import FieldInvalidError

_MAX_NANOS: Final = 10**18
_MAX_ALERTS: Final = 10
_MAX_PERCENT: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much a tenant or a key may cost in a calendar month, in UTC."""

    amount_nanos: int = 0
    """0 means no budget."""

    alert_percents: tuple[int, ...] = ()
    """At which shares of the amount to raise an alert, in ascending order."""

    hard_stop: bool = False
    """Whether calls are refused when the amount is reached."""

    def reached(self, spent_nanos: int) -> tuple[int, ...]:
        """Return which of `alert_percents` are reached."""
        if not self.amount_nanos:
            return ()
        return tuple(p for p in self.alert_percents if spent_nanos * 100 >= p * self.amount_nanos)

    def stops(self, spent_nanos: int) -> bool:
        """Tell whether calls are refused."""
        return self.hard_stop and 0 < self.amount_nanos <= spent_nanos


@dataclass(frozen=True, slots=True)
class Alert:
    """A share of a budget that was reached."""

    owner: str
    """Resource name of the tenant or key."""

    percent: int
    time: datetime


def month_of(time: datetime) -> int:
    """Return the first day of the month that holds `time`, in UTC, counted from 1970."""
    return day_of(time.astimezone(UTC).replace(day=1))


def parse_budget(amount_nanos: int, alert_percents: Sequence[int], *, hard_stop: bool) -> Budget:
    """Parse a budget.

    Raises:
        FieldInvalidError: A field is out of its range, or a percentage comes twice.
    """
    if not 0 <= amount_nanos <= _MAX_NANOS:
        raise FieldInvalidError("budget.amount_nanos", amount_nanos, f"be 0 to {_MAX_NANOS}")
    if len(alert_percents) > _MAX_ALERTS or len(set(alert_percents)) != len(alert_percents):
        raise FieldInvalidError(
            "budget.alert_percents", list(alert_percents), f"be at most {_MAX_ALERTS}, each once"
        )
    for index, percent in enumerate(alert_percents):
        if not 1 <= percent <= _MAX_PERCENT:
            raise FieldInvalidError(
                f"budget.alert_percents[{index}]", percent, f"be 1 to {_MAX_PERCENT}"
            )
    return Budget(
        amount_nanos=amount_nanos,
        alert_percents=tuple(sorted(alert_percents)),
        hard_stop=hard_stop,
    )
