"""The store in SQL, written for SQLite and PostgreSQL alike.

Every writing transaction locks the row of the log first. So writers run one after the other,
version numbers have no gaps, and the order of the log is the order of the commits.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import Connection, Engine, and_, delete, insert, select, update

from servery_registry import rows, schema
from servery_registry.statements import (
    append,
    find_alias,
    find_answer,
    find_model,
    find_version,
    last_position,
    named,
    next_number,
    of_model,
    remember,
    require_etag,
)
from servery_registry.store import (
    AliasNotFoundError,
    Change,
    NewVersion,
    RequestKey,
    Snapshot,
)
from servery_registry.version import Alias, Model, Version, bundle_digest
from servery_rpc.database import reads
from servery_rpc.names import AliasName, ModelName, VersionName


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
        self._reader = reads(engine)
        self._writer = engine
        self._now = now
        self._on_commit = on_commit

    def model(self, name: ModelName) -> Model:
        """See `Store`."""
        with self._reader.begin() as tx:
            return find_model(tx, name)

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
            return find_version(tx, name)

    def versions(self, model: ModelName, before: int | None, limit: int) -> Sequence[Version]:
        """See `Store`."""
        query = select(schema.versions).where(of_model(schema.versions, model))
        if before is not None:
            query = query.where(schema.versions.c.number < before)
        query = query.order_by(schema.versions.c.number.desc()).limit(limit)
        with self._reader.begin() as tx:
            find_model(tx, model)
            return [rows.version(row) for row in tx.execute(query)]

    def alias(self, name: AliasName) -> Alias:
        """See `Store`."""
        with self._reader.begin() as tx:
            if (alias := find_alias(tx, name)) is None:
                raise AliasNotFoundError(name)
            return alias

    def answered(self, tenant: str, request: RequestKey) -> Version | None:
        """See `Store`."""
        with self._reader.begin() as tx:
            return find_answer(tx, tenant, request, self._now())

    def add_version(self, new: NewVersion, request: RequestKey | None) -> Version:
        """See `Store`."""
        now = self._now()
        with self._write() as tx:
            if request and (before := find_answer(tx, new.model.tenant, request, now)):
                return before
            version = Version(
                name=VersionName(new.model, next_number(tx, new.model, now)),
                files=tuple(sorted(new.files)),
                metrics=new.metrics,
                digest=bundle_digest(new.files),
                create_time=now,
            )
            tx.execute(insert(schema.versions).values(rows.of_version(version)))
            append(tx, new.model, now, number=version.name.number)
            if request:
                remember(tx, version.name, request, now)
        return version

    def set_alias(self, name: AliasName, number: int, etag: str) -> Alias:
        """See `Store`."""
        now = self._now()
        with self._write() as tx:
            find_version(tx, VersionName(name.model, number))
            current = find_alias(tx, name)
            if current is not None and current.number == number:
                return current
            require_etag(name, current, etag)
            position = append(tx, name.model, now, number=number, alias=name.alias)
            new_etag = rows.etag(position)
            key = {"tenant": name.model.tenant, "model": name.model.model, "alias": name.alias}
            values = {"number": number, "etag": new_etag, "update_time": now}
            if current is None:
                tx.execute(insert(schema.aliases).values(**key, **values))
            else:
                tx.execute(update(schema.aliases).where(named(name)).values(**values))
        return Alias(name=name, number=number, etag=new_etag, update_time=now)

    def delete_alias(self, name: AliasName, etag: str) -> None:
        """See `Store`."""
        with self._write() as tx:
            current = find_alias(tx, name)
            if current is None:
                raise AliasNotFoundError(name)
            require_etag(name, current, etag)
            tx.execute(delete(schema.aliases).where(named(name)))
            append(tx, name.model, self._now(), alias=name.alias)

    def log_id(self) -> str:
        """See `Store`."""
        with self._reader.begin() as tx:
            return str(tx.execute(select(schema.log.c.id)).scalar_one())

    def position(self) -> int:
        """See `Store`."""
        with self._reader.begin() as tx:
            return last_position(tx)

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
                last_position(tx),
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
