"""The tables of the registry, as SQLAlchemy Core sees them; `migrations/` creates them."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ForeignKeyConstraint,
    Index,
    MetaData,
    String,
    Table,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class UtcTime(TypeDecorator[datetime]):
    """An instant as whole microseconds since 1970: the same on every engine."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """See `TypeDecorator`."""
        return None if value is None else (value - _EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        """See `TypeDecorator`."""
        return None if value is None else _EPOCH + timedelta(microseconds=value)


metadata: Final = MetaData()


def _model_key() -> list[Column[Any]]:
    return [
        Column("tenant", String(31), primary_key=True),
        Column("model", String(63), primary_key=True),
    ]


models: Final = Table(
    "models",
    metadata,
    *_model_key(),
    Column("create_time", UtcTime, nullable=False),
    Column("latest_version", BigInteger, nullable=False),
)

versions: Final = Table(
    "versions",
    metadata,
    *_model_key(),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("files", JSON, nullable=False),  # [[path, size_bytes, sha256], …] by path
    Column("metrics", JSON, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    ForeignKeyConstraint(["tenant", "model"], ["models.tenant", "models.model"]),
)

aliases: Final = Table(
    "aliases",
    metadata,
    *_model_key(),
    Column("alias", String(63), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("etag", String(32), nullable=False),
    Column("update_time", UtcTime, nullable=False),
    ForeignKeyConstraint(
        ["tenant", "model", "number"], ["versions.tenant", "versions.model", "versions.number"]
    ),
)

# What RegisterVersion answered to each request_id in the last 24 hours.
requests: Final = Table(
    "requests",
    metadata,
    Column("tenant", String(31), primary_key=True),
    Column("request_id", String(36), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("model", String(63), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("create_time", UtcTime, nullable=False, index=True),
    ForeignKeyConstraint(
        ["tenant", "model", "number"], ["versions.tenant", "versions.model", "versions.number"]
    ),
)

# One row. Whoever writes locks it first, so positions are given out in the order of the commits.
log: Final = Table(
    "log",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("position", BigInteger, nullable=False),
)

# Every change of a version or alias. `alias` is NULL for a new version, `number` is NULL for an
# alias that was deleted.
events: Final = Table(
    "events",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant", String(31), nullable=False),
    Column("model", String(63), nullable=False),
    Column("number", BigInteger),
    Column("alias", String(63)),
    Column("time", UtcTime, nullable=False),
    Index("ix_events_tenant_position", "tenant", "position"),
)
