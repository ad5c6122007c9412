"""The store in SQL, written for SQLite and PostgreSQL alike.

Every writing transaction locks the row of the log first. So writers run one after the other,
version numbers have no gaps, and the order of the log is the order of the commits.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Engine, and_, delete, insert, select, update

from servery_registry import rows, schema
from servery_registry.database import WRITES
from servery_registry.store import (
    AliasNotFoundError,
    Change,
    EtagMismatchError,
    ModelNotFoundError,
    NewVersion,
    RequestKey,
    Snapshot,
    VersionNotFoundError,
)
from servery_registry.version import Alias, Model, Version, bundle_digest
from servery_rpc.errors import RequestIdReusedError
from servery_rpc.names import AliasName, ModelName, VersionName

_REQUEST_LIFETIME: Final = timedelta(hours=24)


class SqlStore:
    """A `Store` in one database."""

    def __init__(
        self, engine: Engine, now: Callable[[], datetime], on_commit: Callable[[], None]
    ) -> None:
        """Build it over a migrated database.

        Args:
            engine: From `open_database`.
            now: The clock.
            on_commit: Called after each writing transaction, in its thread.
        """
        self._reader = engine
        self._writer = engine.execution_options(**{WRITES: True})
        self._now = now
        self._on_commit = on_commit

    def model(self, name: ModelName) -> Model:
        """See `Store`."""
        with self._reader.begin() as tx:
            return _model(tx, name)

    def models(self, tenant: str, after: str, limit: int) -> Sequence[Model]:
        """See `Store`."""
        table, aliases = schema.models.c, schema.aliases.c
        with self._reader.begin() as tx:
            found = tx.execute(
                select(schema.models)
                .where(table.tenant == tenant, table.model > after)
                .order_by(table.model)
                .limit(limit)
            ).all()
            if not found:
                return []
            pointing = tx.execute(
                select(schema.aliases)
                .where(
                    aliases.tenant == tenant,
                    aliases.model.between(found[0].model, found[-1].model),
                )
                .order_by(aliases.model, aliases.alias)
            ).all()
        return [rows.model(row, [a for a in pointing if a.model == row.model]) for row in found]

    def version(self, name: VersionName) -> Version:
        """See `Store`."""
        with self._reader.begin() as tx:
            return _version(tx, name)

    def versions(self, model: ModelName, before: int | None, limit: int) -> Sequence[Version]:
        """See `Store`."""
        query = select(schema.versions).where(_of(schema.versions, model))
        if before is not None:
            query = query.where(schema.versions.c.number < before)
        query = query.order_by(schema.versions.c.number.desc()).limit(limit)
        with self._reader.begin() as tx:
            _model(tx, model)
            return [rows.version(row) for row in tx.execute(query)]

    def alias(self, name: AliasName) -> Alias:
        """See `Store`."""
        with self._reader.begin() as tx:
            if (alias := _alias(tx, name)) is None:
                raise AliasNotFoundError(name)
            return alias

    def answered(self, tenant: str, request: RequestKey) -> Version | None:
        """See `Store`."""
        with self._reader.begin() as tx:
            return _answered(tx, tenant, request, self._now())

    def add_version(self, new: NewVersion, request: RequestKey | None) -> Version:
        """See `Store`."""
        now = self._now()
        with self._write() as tx:
            if request and (before := _answered(tx, new.model.tenant, request, now)):
                return before
            version = Version(
                name=VersionName(new.model, _next_number(tx, new.model, now)),
                files=tuple(sorted(new.files)),
                metrics=new.metrics,
                digest=bundle_digest(new.files),
                create_time=now,
            )
            tx.execute(insert(schema.versions).values(rows.of_version(version)))
            _append(tx, new.model, now, number=version.name.number)
            if request:
                _remember(tx, version.name, request, now)
        return version

    def set_alias(self, name: AliasName, number: int, etag: str) -> Alias:
        """See `Store`."""
        now = self._now()
        with self._write() as tx:
            _version(tx, VersionName(name.model, number))
            current = _alias(tx, name)
            if current is not None and current.number == number:
                return current
            _match(name, current, etag)
            position = _append(tx, name.model, now, number=number, alias=name.alias)
            new_etag = rows.etag(position)
            key = {"tenant": name.model.tenant, "model": name.model.model, "alias": name.alias}
            values = {"number": number, "etag": new_etag, "update_time": now}
            if current is None:
                tx.execute(insert(schema.aliases).values(**key, **values))
            else:
                tx.execute(update(schema.aliases).where(_named(name)).values(**values))
        return Alias(name=name, number=number, etag=new_etag, update_time=now)

    def delete_alias(self, name: AliasName, etag: str) -> None:
        """See `Store`."""
        with self._write() as tx:
            current = _alias(tx, name)
            if current is None:
                raise AliasNotFoundError(name)
            _match(name, current, etag)
            tx.execute(delete(schema.aliases).where(_named(name)))
            _append(tx, name.model, self._now(), alias=name.alias)

    def log_id(self) -> str:
        """See `Store`."""
        with self._reader.begin() as tx:
            return str(tx.execute(select(schema.log.c.id)).scalar_one())

    def position(self) -> int:
        """See `Store`."""
        with self._reader.begin() as tx:
            return _position(tx)

    def snapshot(self, tenant: str | None) -> Snapshot:
        """See `Store`."""
        versions, aliases = schema.versions, schema.aliases
        all_versions = select(versions).order_by(versions.c.tenant, versions.c.model)
        all_versions = all_versions.order_by(versions.c.number)
        all_aliases = select(aliases).order_by(aliases.c.tenant, aliases.c.model, aliases.c.alias)
        if tenant is not None:
            all_versions = all_versions.where(versions.c.tenant == tenant)
            all_aliases = all_aliases.where(aliases.c.tenant == tenant)
        with self._reader.begin() as tx:
            return Snapshot(
                _position(tx),
                [rows.version(row) for row in tx.execute(all_versions)],
                [rows.alias(row) for row in tx.execute(all_aliases)],
            )

    def changes(self, tenant: str | None, after: int, limit: int) -> Sequence[Change]:
        """See `Store`."""
        event, version = schema.events.c, schema.versions.c
        # Only the event of a new version (no alias) brings the columns of its version along.
        joined = schema.events.outerjoin(
            schema.versions,
            and_(
                event.alias.is_(None),
                version.tenant == event.tenant,
                version.model == event.model,
                version.number == event.number,
            ),
        )
        query = (
            select(schema.events, version.files, version.metrics, version.digest)
            .add_columns(version.create_time)
            .select_from(joined)
            .where(event.position > after)
            .order_by(event.position)
            .limit(limit)
        )
        if tenant is not None:
            query = query.where(event.tenant == tenant)
        with self._reader.begin() as tx:
            return [rows.change(row) for row in tx.execute(query)]

    def referenced_blobs(self) -> set[str]:
        """See `Store`."""
        with self._reader.begin() as tx:
            files = tx.execute(select(schema.versions.c.files)).scalars()
            return {sha256 for listed in files for _, _, sha256 in listed}

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self._writer.begin() as tx:
            tx.execute(select(schema.log.c.position).with_for_update()).scalar_one()
            yield tx
        self._on_commit()


def _of(table: Any, model: ModelName) -> Any:
    return and_(table.c.tenant == model.tenant, table.c.model == model.model)


def _named(name: AliasName) -> Any:
    return and_(_of(schema.aliases, name.model), schema.aliases.c.alias == name.alias)


def _model(tx: Connection, name: ModelName) -> Model:
    row = tx.execute(select(schema.models).where(_of(schema.models, name))).one_or_none()
    if row is None:
        raise ModelNotFoundError(name)
    aliases = select(schema.aliases).where(_of(schema.aliases, name))
    return rows.model(row, tx.execute(aliases.order_by(schema.aliases.c.alias)).all())


def _version(tx: Connection, name: VersionName) -> Version:
    query = select(schema.versions).where(
        _of(schema.versions, name.model), schema.versions.c.number == name.number
    )
    row = tx.execute(query).one_or_none()
    if row is None:
        raise VersionNotFoundError(name)
    return rows.version(row)


def _alias(tx: Connection, name: AliasName) -> Alias | None:
    row = tx.execute(select(schema.aliases).where(_named(name))).one_or_none()
    return None if row is None else rows.alias(row)


def _match(name: AliasName, current: Alias | None, etag: str) -> None:
    expected = current.etag if current else ""
    if etag != expected:
        raise EtagMismatchError(name, expected)


def _next_number(tx: Connection, name: ModelName, now: datetime) -> int:
    row = tx.execute(select(schema.models).where(_of(schema.models, name))).one_or_none()
    if row is None:
        tx.execute(
            insert(schema.models).values(
                tenant=name.tenant, model=name.model, create_time=now, latest_version=1
            )
        )
        return 1
    number = int(row.latest_version) + 1
    tx.execute(update(schema.models).where(_of(schema.models, name)).values(latest_version=number))
    return number


def _answered(tx: Connection, tenant: str, request: RequestKey, now: datetime) -> Version | None:
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
    return _version(tx, VersionName(ModelName(tenant, row.model), row.number))


def _remember(tx: Connection, name: VersionName, request: RequestKey, now: datetime) -> None:
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


def _position(tx: Connection) -> int:
    return int(tx.execute(select(schema.log.c.position)).scalar_one())


def _append(
    tx: Connection,
    model: ModelName,
    now: datetime,
    *,
    number: int | None = None,
    alias: str | None = None,
) -> int:
    """Write one event; return its position."""
    position = _position(tx) + 1
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
