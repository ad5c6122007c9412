"""The steps that transactions of the store are made of."""

from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, and_, delete, insert, select, update

from servery_registry import rows, schema
from servery_registry.store import (
    EtagMismatchError,
    ModelNotFoundError,
    RequestKey,
    VersionNotFoundError,
)
from servery_registry.version import Alias, Model, Version
from servery_rpc.errors import RequestIdReusedError
from servery_rpc.names import AliasName, ModelName, VersionName

_REQUEST_LIFETIME: Final = timedelta(hours=24)


def of_model(table: Any, model: ModelName) -> Any:
    """Select the rows of a table that belong to `model`."""
    return and_(table.c.tenant == model.tenant, table.c.model == model.model)


def named(name: AliasName) -> Any:
    """Select the row of an alias."""
    return and_(of_model(schema.aliases, name.model), schema.aliases.c.alias == name.alias)


def find_model(tx: Connection, name: ModelName) -> Model:
    """Read a model with its aliases.

    Raises:
        ModelNotFoundError: There is none.
    """
    row = tx.execute(select(schema.models).where(of_model(schema.models, name))).one_or_none()
    if row is None:
        raise ModelNotFoundError(name)
    aliases = select(schema.aliases).where(of_model(schema.aliases, name))
    return rows.model(row, tx.execute(aliases.order_by(schema.aliases.c.alias)).all())


def find_version(tx: Connection, name: VersionName) -> Version:
    """Read a version.

    Raises:
        VersionNotFoundError: There is none.
    """
    query = select(schema.versions).where(
        of_model(schema.versions, name.model), schema.versions.c.number == name.number
    )
    row = tx.execute(query).one_or_none()
    if row is None:
        raise VersionNotFoundError(name)
    return rows.version(row)


def find_alias(tx: Connection, name: AliasName) -> Alias | None:
    """Read an alias, if there is one."""
    row = tx.execute(select(schema.aliases).where(named(name))).one_or_none()
    return None if row is None else rows.alias(row)


def require_etag(name: AliasName, current: Alias | None, etag: str) -> None:
    """Refuse an `etag` that is not the current one, empty where there is no alias.

    Raises:
        EtagMismatchError: It is another one.
    """
    expected = current.etag if current else ""
    if etag != expected:
        raise EtagMismatchError(name, expected)


def next_number(tx: Connection, name: ModelName, now: datetime) -> int:
    """Count one more version of a model, creating the model with its first; return its number."""
    row = tx.execute(select(schema.models).where(of_model(schema.models, name))).one_or_none()
    if row is None:
        tx.execute(
            insert(schema.models).values(
                tenant=name.tenant, model=name.model, create_time=now, latest_version=1
            )
        )
        return 1
    number = int(row.latest_version) + 1
    tx.execute(
        update(schema.models).where(of_model(schema.models, name)).values(latest_version=number)
    )
    return number


def find_answer(tx: Connection, tenant: str, request: RequestKey, now: datetime) -> Version | None:
    """Read what a request was answered in the last 24 hours, if it was.

    Raises:
        RequestIdReusedError: Its id came with another digest.
    """
    table = schema.requests.c
    row = tx.execute(
        select(schema.requests).where(
            table.tenant == tenant,
            table.request_id == request.request_id,
            table.create_time > now - _REQUEST_LIFETIME,
        )
    ).one_or_none()
    if row is None:
        return None
    if row.digest != request.digest:
        raise RequestIdReusedError(request.request_id)
    return find_version(tx, VersionName(ModelName(tenant, row.model), row.number))


def remember(tx: Connection, name: VersionName, request: RequestKey, now: datetime) -> None:
    """Keep what a request was answered, and forget answers that are too old."""
    table = schema.requests
    tx.execute(delete(table).where(table.c.create_time <= now - _REQUEST_LIFETIME))
    tx.execute(
        insert(table).values(
            tenant=name.model.tenant,
            request_id=request.request_id,
            digest=request.digest,
            model=name.model.model,
            number=name.number,
            create_time=now,
        )
    )


def last_position(tx: Connection) -> int:
    """Read the position of the last change."""
    return int(tx.execute(select(schema.log.c.position)).scalar_one())


def append(
    tx: Connection,
    model: ModelName,
    now: datetime,
    *,
    number: int | None = None,
    alias: str | None = None,
) -> int:
    """Write one event; return its position."""
    position = last_position(tx) + 1
    tx.execute(update(schema.log).values(position=position))
    tx.execute(
        insert(schema.events).values(
            position=position,
            tenant=model.tenant,
            model=model.model,
            number=number,
            alias=alias,
            time=now,
        )
    )
    return position
