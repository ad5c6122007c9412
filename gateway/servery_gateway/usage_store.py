"""Usage on disk. Every method blocks; what it wrote is durable when it returns."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from sqlalchemy import Engine, delete, func, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import InstrumentedAttribute, Session

from servery_gateway.billing_store import read_prices
from servery_gateway.database import ApiKeyRow, NotedCallRow, UsageDayRow, UsageRow
from servery_gateway.usage import (
    AMOUNTS,
    MINUTES_A_DAY,
    Bill,
    Call,
    Dimension,
    Query,
    Row,
    Sums,
)

_OK: Final = 0  # Of google.rpc.Code.
_NOTED_MINUTES: Final = 60
"""For how long a call that comes again is known."""

_COLUMNS: Final[Mapping[Dimension, InstrumentedAttribute[Any]]] = {
    "tenant": UsageRow.tenant,
    "api_key": UsageRow.api_key,
    "model": UsageRow.model,
    "code": UsageRow.code,
    "version": UsageRow.version,
}


class UsageStore:
    """The only place that reads and writes usage. Safe to use from many threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._insert: Any = {"sqlite": sqlite, "postgresql": postgresql}[engine.dialect.name].insert

    def add(self, calls: Sequence[Call], minute: int) -> list[Call]:
        """Count calls, all of them or none; return those that had not been counted before.

        Args:
            calls: Of different ids.
            minute: The current one.
        """
        with Session(self._engine) as session, session.begin():
            noted = self._insert(NotedCallRow).on_conflict_do_nothing().returning(NotedCallRow.id)
            rows = [{"id": call.id, "minute": minute} for call in calls]
            new = set(session.scalars(noted, rows))
            session.execute(
                delete(NotedCallRow).where(NotedCallRow.minute < minute - _NOTED_MINUTES)
            )
            fresh = [call for call in calls if call.id in new]
            prices = read_prices(session)
            days: dict[tuple[int, str], Day] = defaultdict(Day)
            uses: dict[str, int] = {}
            for bill, (sums, reached) in _billed(fresh).items():
                cost = prices.of(bill.tenant).cost_nanos(sums) if bill.code == _OK else 0
                session.execute(self._sum_up(bill, replace(sums, cost_nanos=cost)))
                uses[bill.api_key] = max(bill.minute, uses.get(bill.api_key, 0))
                for owner in (bill.tenant, bill.api_key):
                    days[bill.minute // MINUTES_A_DAY, owner].add(reached, cost)
            for name, used in uses.items():
                session.execute(_note_use(name, used))
            for (day, owner), counted in days.items():
                session.execute(self._count(day, owner, counted))
        return fresh

    def _sum_up(self, bill: Bill, sums: Sums) -> Any:
        insert = self._insert(UsageRow).values(**asdict(bill), **asdict(sums))
        return insert.on_conflict_do_update(
            index_elements=list(asdict(bill)),
            set_={name: getattr(UsageRow, name) + insert.excluded[name] for name in AMOUNTS},
        )

    def _count(self, day: int, owner: str, counted: "Day") -> Any:
        insert = self._insert(UsageDayRow).values(day=day, owner=owner, **asdict(counted))
        return insert.on_conflict_do_update(
            index_elements=["day", "owner"],
            set_={
                "requests": UsageDayRow.requests + insert.excluded["requests"],
                "cost_nanos": UsageDayRow.cost_nanos + insert.excluded["cost_nanos"],
            },
        )

    def answered_models(self) -> set[str]:
        """Return the models that usage was ever counted for."""
        query = select(UsageRow.model).distinct()
        with Session(self._engine) as session:
            return set(session.scalars(query))

    def query(self, query: Query, limit: int) -> list[Row]:
        """Return up to `limit` sums, by time and then by group."""
        step = query.bucket_minutes
        bucket = (
            literal(query.start_minute)
            if step is None
            else UsageRow.minute - UsageRow.minute % step
        ).label("bucket")
        groups = [_COLUMNS[dimension] for dimension in query.group_by]
        keys: list[Any] = [*([] if step is None else [bucket]), *groups]
        found = (
            select(bucket, *groups, *(func.sum(getattr(UsageRow, name)) for name in AMOUNTS))
            .where(UsageRow.minute >= query.start_minute, UsageRow.minute < query.end_minute)
            .group_by(*keys)
            .having(func.count() > 0)
            .order_by(*keys)
            .limit(limit)
        )
        if query.tenant is not None:
            found = found.where(UsageRow.tenant == query.tenant)
        with Session(self._engine) as session:
            return [_row(query, tuple(row)) for row in session.execute(found)]


@dataclass(slots=True)
class Day:
    """What a tenant or a key did on a day."""

    requests: int = 0
    """That reached a server."""

    cost_nanos: int = 0

    def add(self, requests: int, cost_nanos: int) -> None:
        """Count more."""
        self.requests += requests
        self.cost_nanos += cost_nanos


def _billed(calls: Iterable[Call]) -> Mapping[Bill, tuple[Sums, int]]:
    """Sum up the calls of those who showed who they are, and how many of them reached a server."""
    bills: dict[Bill, tuple[Sums, int]] = {}
    for call in calls:
        if not call.bill.tenant:
            continue
        reached = call.sums.requests if call.reached_server else 0
        if call.bill in bills:
            sums, before = bills[call.bill]
            bills[call.bill] = sums + call.sums, before + reached
        else:
            bills[call.bill] = call.sums, reached
    return bills


def _note_use(key: str, minute: int) -> Any:
    """Note when a key was used; callers may also be known in other ways than by a key."""
    rows = update(ApiKeyRow).where(ApiKeyRow.key == key.partition("/apiKeys/")[2])
    return rows.values(last_use_minute=minute)


def _row(query: Query, row: tuple[Any, ...]) -> Row:
    start, *values = row
    groups = values[: len(query.group_by)]
    amounts = values[len(query.group_by) :]
    return Row(
        start_minute=max(int(start), query.start_minute),
        group=dict(zip(query.group_by, groups, strict=True)),
        sums=Sums(**{name: int(sum_) for name, sum_ in zip(AMOUNTS, amounts, strict=True)}),
    )
