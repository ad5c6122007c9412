"""The tables of the gateway."""

from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import BigInteger, Boolean, ForeignKey, Index, LargeBinary, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Base(DeclarativeBase):
    """The tables. Times are microseconds since 1970 in UTC."""


class TenantRow(Base):
    """One tenant."""

    __tablename__ = "tenants"

    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    display_name: Mapped[str] = mapped_column(Text)
    create_time: Mapped[int] = mapped_column(BigInteger)


class ApiKeyRow(Base):
    """One API key."""

    __tablename__ = "api_keys"
    __table_args__ = (Index("api_keys_by_tenant", "tenant", "create_time", "key"),)

    key: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.tenant"))
    display_name: Mapped[str] = mapped_column(Text)
    secret_digest: Mapped[str] = mapped_column(Text, unique=True)
    permissions: Mapped[str] = mapped_column(Text)
    create_time: Mapped[int] = mapped_column(BigInteger)
    expire_time: Mapped[int | None] = mapped_column(BigInteger)
    revoke_time: Mapped[int | None] = mapped_column(BigInteger, index=True)
    last_use_minute: Mapped[int | None] = mapped_column(BigInteger)


class UsageRow(Base):
    """The calls of one minute that are alike."""

    __tablename__ = "usage_sums"

    minute: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    api_key: Mapped[str] = mapped_column(Text, primary_key=True)
    model: Mapped[str] = mapped_column(Text, primary_key=True)
    code: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    request_bytes: Mapped[int] = mapped_column(BigInteger)
    response_bytes: Mapped[int] = mapped_column(BigInteger)
    duration_us: Mapped[int] = mapped_column(BigInteger)
    rows: Mapped[int] = mapped_column(BigInteger)
    compute_ns: Mapped[int] = mapped_column(BigInteger)
    cost_nanos: Mapped[int] = mapped_column(BigInteger)


class UsageDayRow(Base):
    """The calls of an owner that reached a server on one day since 1970 in UTC, and their cost."""

    __tablename__ = "usage_days"

    day: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    owner: Mapped[str] = mapped_column(Text, primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    cost_nanos: Mapped[int] = mapped_column(BigInteger)


class PricesRow(Base):
    """What the calls of a tenant cost, in billionths; an empty name stands for all others."""

    __tablename__ = "prices"

    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    thousand_requests_nanos: Mapped[int] = mapped_column(BigInteger)
    thousand_rows_nanos: Mapped[int] = mapped_column(BigInteger)
    compute_second_nanos: Mapped[int] = mapped_column(BigInteger)
    gigabyte_nanos: Mapped[int] = mapped_column(BigInteger)


class BudgetRow(Base):
    """How much a tenant or a key may cost in a month; percentages are separated by commas."""

    __tablename__ = "budgets"

    owner: Mapped[str] = mapped_column(Text, primary_key=True)
    amount_nanos: Mapped[int] = mapped_column(BigInteger)
    alert_percents: Mapped[str] = mapped_column(Text)
    hard_stop: Mapped[bool] = mapped_column(Boolean)


class BudgetAlertRow(Base):
    """An alert that was raised in the month that begins on a day since 1970 in UTC."""

    __tablename__ = "budget_alerts"

    owner: Mapped[str] = mapped_column(Text, primary_key=True)
    month: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    percent: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    time: Mapped[int] = mapped_column(BigInteger)


class QuotaRow(Base):
    """How much a tenant or a key may call; 0 means no limit."""

    __tablename__ = "quotas"

    owner: Mapped[str] = mapped_column(Text, primary_key=True)
    requests_per_second: Mapped[int] = mapped_column(BigInteger)
    requests_per_day: Mapped[int] = mapped_column(BigInteger)
    requests_in_flight: Mapped[int] = mapped_column(BigInteger)


class RevokedIdentityRow(Base):
    """An identity that is refused."""

    __tablename__ = "revoked_identities"

    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.tenant"), primary_key=True)
    identity: Mapped[str] = mapped_column(Text, primary_key=True)
    revoke_time: Mapped[int] = mapped_column(BigInteger)


class RouteRow(Base):
    """Where the calls about a model go."""

    __tablename__ = "routes"

    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.tenant"), primary_key=True)
    model: Mapped[str] = mapped_column(Text, primary_key=True)
    pools: Mapped[str] = mapped_column(Text)
    mirror_pool: Mapped[str] = mapped_column(Text)


class NotedCallRow(Base):
    """A call that was counted lately, so that it is not counted again."""

    __tablename__ = "usage_noted_calls"

    id: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    minute: Mapped[int] = mapped_column(BigInteger, index=True)


def to_us(time: datetime) -> int:
    """Return a time as it is stored."""
    return (time - _EPOCH) // _MICROSECOND


def from_us(microseconds: int) -> datetime:
    """Return a time that was stored."""
    return _EPOCH + timedelta(microseconds=microseconds)
