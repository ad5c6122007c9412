"""Quotas on disk. Every method blocks; what it wrote is durable when it returns.

An owner is the resource name of a tenant or a key.
"""

from dataclasses import asdict

from sqlalchemy import Engine, and_, or_, select
from sqlalchemy.orm import Session

from servery_gateway.database import QuotaRow, UsageDayRow
from servery_gateway.quota import LIMITS, Quota


class QuotaStore:
    """The only place that reads and writes quotas. Safe to use from many threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def set(self, owner: str, quota: Quota) -> None:
        """Replace the quota of an owner."""
        with Session(self._engine) as session, session.begin():
            session.merge(QuotaRow(owner=owner, **asdict(quota)))

    def get(self, owner: str) -> Quota:
        """Return the quota of an owner; one that was never set has no limits."""
        with Session(self._engine) as session:
            row = session.get(QuotaRow, owner)
            return Quota() if row is None else _quota(row)

    def limited(self) -> dict[str, Quota]:
        """Return the quota of every owner whose calls a second or in flight are limited."""
        query = select(QuotaRow).where(
            or_(QuotaRow.requests_per_second > 0, QuotaRow.requests_in_flight > 0)
        )
        with Session(self._engine) as session:
            return {row.owner: _quota(row) for row in session.scalars(query)}

    def requests_of(self, owner: str, day: int) -> int:
        """Return how many calls of an owner reached a server on a day since 1970."""
        with Session(self._engine) as session:
            row = session.get(UsageDayRow, (day, owner))
            return 0 if row is None else row.requests

    def spent(self, day: int) -> frozenset[str]:
        """Return the owners that have used up their calls of a day since 1970."""
        query = (
            select(QuotaRow.owner)
            .join(UsageDayRow, and_(UsageDayRow.owner == QuotaRow.owner, UsageDayRow.day == day))
            .where(QuotaRow.requests_per_day > 0, UsageDayRow.requests >= QuotaRow.requests_per_day)
        )
        with Session(self._engine) as session:
            return frozenset(session.scalars(query))


def _quota(row: QuotaRow) -> Quota:
    return Quota(**{name: getattr(row, name) for name in LIMITS})
