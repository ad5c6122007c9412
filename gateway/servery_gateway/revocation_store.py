"""Revoked identities on disk. Every method blocks; what it wrote is durable when it returns."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from servery_gateway.database import RevokedIdentityRow, from_us, to_us
from servery_rpc.names import IdentityName, TenantName


@dataclass(frozen=True, slots=True)
class RevokedIdentity:
    """An identity that is refused."""

    name: IdentityName
    revoke_time: datetime


class RevocationStore:
    """The only place that reads and writes them. Safe to use from many threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, name: IdentityName, now: datetime) -> RevokedIdentity:
        """Store an identity of an existing tenant, unless it is there already, and return it."""
        with Session(self._engine) as session, session.begin():
            row = session.get(RevokedIdentityRow, (name.tenant, name.identity))
            if row is None:
                row = RevokedIdentityRow(
                    tenant=name.tenant, identity=name.identity, revoke_time=to_us(now)
                )
                session.add(row)
            return _revoked(row)

    def remove(self, name: IdentityName) -> None:
        """Forget an identity, if it is there."""
        with Session(self._engine) as session, session.begin():
            row = session.get(RevokedIdentityRow, (name.tenant, name.identity))
            if row is not None:
                session.delete(row)

    def all(self) -> frozenset[str]:
        """Return the resource names of all of them."""
        with Session(self._engine) as session:
            rows = session.scalars(select(RevokedIdentityRow))
            return frozenset(str(_revoked(row).name) for row in rows)

    def list(
        self, tenant: TenantName, limit: int, after: IdentityName | None
    ) -> list[RevokedIdentity]:
        """Return up to `limit` of a tenant by name, those behind the identity `after`."""
        query = (
            select(RevokedIdentityRow)
            .where(RevokedIdentityRow.tenant == tenant.tenant)
            .order_by(RevokedIdentityRow.identity)
            .limit(limit)
        )
        if after is not None:
            query = query.where(RevokedIdentityRow.identity > after.identity)
        with Session(self._engine) as session:
            return [_revoked(row) for row in session.scalars(query)]


def _revoked(row: RevokedIdentityRow) -> RevokedIdentity:
    return RevokedIdentity(IdentityName(row.tenant, row.identity), from_us(row.revoke_time))
