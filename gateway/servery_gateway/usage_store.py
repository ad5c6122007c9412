"""Usage on disk. Every method blocks; what it wrote is durable when it returns."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Engine, delete, func, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import InstrumentedAttribute, Session

from servery_gateway.database import ApiKeyRow, NotedCallRow, UsageDayRow, UsageRow
from servery_gateway.usage import MINUTES_A_DAY, Bill, Call, Dimension, Query, Row, Sums

_NOTED_MINUTES: Final = 60
"""For how long a call that comes again is known."""

_COLUMNS: Final[Mapping[Dimension, InstrumentedAttribute[Any]]] = {
    "tenant": UsageRow.tenant,
    "api_key": UsageRow.api_key,
    "model": UsageRow.model,
    "code": UsageRow.code,
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
            bills: dict[Bill, Sums] = {}
            days: dict[tuple[int, str], int] = defaultdict(int)
            uses: dict[str, int] = {}
            for call in fresh:
                bill = call.bill
                if not bill.tenant:
                    continue
                bills[bill] = bills[bill] + call.sums if bill in bills else call.sums
                uses[bill.api_key] = max(bill.minute, uses.get(bill.api_key, 0))
                if call.reached_server:
                    for owner in (bill.tenant, bill.api_key):
                        days[bill.minute // MINUTES_A_DAY, owner] += call.sums.requests
            for bill, sums in bills.items():
                session.execute(self._sum_up(bill, sums))
            for name, used in uses.items():
                session.execute(
                    update(ApiKeyRow)
                    .where(ApiKeyRow.key == name.rpartition("/")[2])
                    .values(last_use_minute=used)
                )
            for (day, owner), requests in days.items():
                session.execute(self._count(day, owner, requests))
        return fresh

    def _sum_up(self, bill: Bill, sums: Sums) -> Any:
        values = {
            "minute": bill.minute,
            "tenant": bill.tenant,
            "api_key": bill.api_key,
            "model": bill.model,
            "code": bill.code,
        }
        amounts = {
            "requests": sums.requests,
            "request_bytes": sums.request_bytes,
            "response_bytes": sums.response_bytes,
            "duration_us": sums.duration_us,
        }
        insert = self._insert(UsageRow).values(**values, **amounts)
        return insert.on_conflict_do_update(
            index_elements=list(values),
            set_={name: getattr(UsageRow, name) + insert.excluded[name] for name in amounts},
        )

    def _count(self, day: int, owner: str, requests: int) -> Any:
        insert = self._insert(UsageDayRow).values(day=day, owner=owner, requests=requests)
        return insert.on_conflict_do_update(
            index_elements=["day", "owner"],
            set_={"requests": UsageDayRow.requests + insert.excluded["requests"]},
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
            select(
                bucket,
                *groups,
                func.sum(UsageRow.requests),
                func.sum(UsageRow.request_bytes),
                func.sum(UsageRow.response_bytes),
                func.sum(UsageRow.duration_us),
            )
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


def _row(query: Query, row: tuple[Any, ...]) -> Row:
    start, *groups, requests, request_bytes, response_bytes, duration_us = row
    return Row(
        start_minute=max(int(start), query.start_minute),
        group=dict(zip(query.group_by, groups, strict=True)),
        sums=Sums(
            requests=int(requests),
            request_bytes=int(request_bytes),
            response_bytes=int(response_bytes),
            duration_us=int(duration_us),
        ),
    )
