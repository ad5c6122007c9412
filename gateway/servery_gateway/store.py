"""Tenants and API keys on disk. Every method blocks; what it wrote is durable when it returns."""

import json
from datetime import datetime

from sqlalchemy import Engine, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from servery_gateway.database import ApiKeyRow, TenantRow, from_us, to_us
from servery_gateway.keys import ApiKey, ApiKeyNotFoundError, Permission
from servery_gateway.quota import Owner
from servery_gateway.tenants import Tenant, TenantExistsError, TenantNotFoundError
from servery_rpc.names import ApiKeyName, TenantName


class Store:
    """The only place that reads and writes the database. Safe to use from many threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add_tenant(self, tenant: Tenant) -> None:
        """Store a new tenant.

        Raises:
            TenantExistsError: Its name is taken.
        """
        row = TenantRow(
            tenant=tenant.name.tenant,
            display_name=tenant.display_name,
            create_time=to_us(tenant.create_time),
        )
        try:
            with Session(self._engine) as session, session.begin():
                session.add(row)
        except IntegrityError:
            raise TenantExistsError(tenant.name) from None

    def tenant(self, name: TenantName) -> Tenant:
        """Return one tenant.

        Raises:
            TenantNotFoundError: There is none of this name.
        """
        with Session(self._engine) as session:
            row = session.get(TenantRow, name.tenant)
            if row is None:
                raise TenantNotFoundError(name)
            return _tenant(row)

    def tenants(self, limit: int, after: str | None) -> list[Tenant]:
        """Return up to `limit` tenants by name, those behind the tenant id `after`."""
        query = select(TenantRow).order_by(TenantRow.tenant).limit(limit)
        if after is not None:
            query = query.where(TenantRow.tenant > after)
        with Session(self._engine) as session:
            return [_tenant(row) for row in session.scalars(query)]

    def add_key(self, key: ApiKey, secret_digest: str) -> None:
        """Store a new key with the digest of its secret.

        Raises:
            TenantNotFoundError: Its tenant does not exist.
        """
        row = ApiKeyRow(
            key=key.name.key,
            tenant=key.name.tenant,
            display_name=key.display_name,
            secret_digest=secret_digest,
            permissions=json.dumps([[p.verb, p.models] for p in key.permissions]),
            create_time=to_us(key.create_time),
            expire_time=None if key.expire_time is None else to_us(key.expire_time),
            revoke_time=None,
        )
        with Session(self._engine) as session, session.begin():
            if session.get(TenantRow, key.name.tenant) is None:
                raise TenantNotFoundError(TenantName(key.name.tenant))
            session.add(row)

    def key_of_secret(self, secret_digest: str) -> ApiKey | None:
        """Return the key whose secret has this digest."""
        query = select(ApiKeyRow).where(ApiKeyRow.secret_digest == secret_digest)
        with Session(self._engine) as session:
            row = session.scalars(query).one_or_none()
            return None if row is None else _key(row)

    def key(self, name: ApiKeyName) -> ApiKey:
        """Return one key.

        Raises:
            ApiKeyNotFoundError: There is none of this name.
        """
        with Session(self._engine) as session:
            row = session.get(ApiKeyRow, name.key)
            if row is None or row.tenant != name.tenant:
                raise ApiKeyNotFoundError(name)
            return _key(row)

    def require(self, owner: Owner) -> None:
        """Do nothing if there is such a tenant or key, or such a tenant with an identity.

        Raises:
            TenantNotFoundError: There is no such tenant.
            ApiKeyNotFoundError: There is no such key.
        """
        if isinstance(owner, ApiKeyName):
            self.key(owner)
        else:
            self.tenant(TenantName(owner.tenant))

    def keys(self, tenant: TenantName, limit: int, after: ApiKeyName | None) -> list[ApiKey]:
        """Return up to `limit` keys of a tenant, the newest first, those behind the key `after`.

        Raises:
            TenantNotFoundError: There is no such tenant.
        """
        order = tuple_(ApiKeyRow.create_time, ApiKeyRow.key)
        query = (
            select(ApiKeyRow)
            .where(ApiKeyRow.tenant == tenant.tenant)
            .order_by(ApiKeyRow.create_time.desc(), ApiKeyRow.key.desc())
            .limit(limit)
        )
        with Session(self._engine) as session:
            if session.get(TenantRow, tenant.tenant) is None:
                raise TenantNotFoundError(tenant)
            if after is not None:
                last = session.get(ApiKeyRow, after.key)
                if last is None:
                    return []
                query = query.where(order < tuple_(last.create_time, last.key))
            return [_key(row) for row in session.scalars(query)]

    def revoke_key(self, name: ApiKeyName, now: datetime) -> ApiKey:
        """Mark a key as revoked, unless it is already, and return it.

        Raises:
            ApiKeyNotFoundError: There is none of this name.
        """
        with Session(self._engine) as session, session.begin():
            row = session.get(ApiKeyRow, name.key)
            if row is None or row.tenant != name.tenant:
                raise ApiKeyNotFoundError(name)
            if row.revoke_time is None:
                row.revoke_time = to_us(now)
            return _key(row)

    def keys_revoked_since(self, time: datetime) -> frozenset[ApiKeyName]:
        """Return the keys that were revoked at `time` or later."""
        query = select(ApiKeyRow).where(ApiKeyRow.revoke_time >= to_us(time))
        with Session(self._engine) as session:
            return frozenset(_key(row).name for row in session.scalars(query))


def _tenant(row: TenantRow) -> Tenant:
    return Tenant(
        name=TenantName(row.tenant),
        display_name=row.display_name,
        create_time=from_us(row.create_time),
    )


def _key(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        name=ApiKeyName(row.tenant, row.key),
        display_name=row.display_name,
        permissions=tuple(
            Permission(verb, tuple(models)) for verb, models in json.loads(row.permissions)
        ),
        create_time=from_us(row.create_time),
        expire_time=None if row.expire_time is None else from_us(row.expire_time),
        revoke_time=None if row.revoke_time is None else from_us(row.revoke_time),
        last_use_time=None
        if row.last_use_minute is None
        else from_us(row.last_use_minute * 60_000_000),
    )
