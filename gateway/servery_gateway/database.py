"""The database of the gateway: how it is opened, and its tables."""

import logging
import os
from datetime import UTC, datetime, timedelta
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Engine,
    ForeignKey,
    Index,
    LargeBinary,
    Text,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from servery_rpc.errors import DependencyUnavailableError

log = logging.getLogger(__name__)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MIGRATING: Final = 0x53657276
"""The lock of who changes the schema."""
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


def open_sqlite(path: Path) -> Engine:
    """Open the SQLite database at `path`, made for this user alone, with the newest schema."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # We begin transactions; the driver would begin late.
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "busy_timeout=5000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    migrate(engine)
    event.listen(engine, "handle_error", _unavailable)
    return engine


def open_postgresql(url: URL) -> Engine:
    """Open the PostgreSQL database at `url`, with the newest schema.

    Raises:
        RuntimeError: It cannot be reached; the message has no secret.
    """
    engine = create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    try:
        migrate(engine)
    except OperationalError as error:
        engine.dispose()
        raise RuntimeError(f"the database cannot be used: {error.orig}") from None
    event.listen(engine, "handle_error", _unavailable)
    return engine


def _unavailable(context: ExceptionContext) -> None:
    """Say that the database is away, or too busy, in the words of who asked for something else."""
    if context.is_pre_ping:
        return  # Only a connection of before is dead; the pool makes another.
    if isinstance(context.sqlalchemy_exception, OperationalError):
        log.error("the database does not answer: %s", context.original_exception)
        raise DependencyUnavailableError("database") from context.original_exception


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest version, all of it or nothing."""
    with as_file(files("servery_gateway") / "migrations") as scripts, engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # SQLite lets one in at a time anyway.
            connection.execute(select(func.pg_advisory_xact_lock(_MIGRATING)))
        config = Config()
        config.set_main_option("script_location", str(scripts))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
