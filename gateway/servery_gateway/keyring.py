"""Tenants and keys: what can be done with them, and what that means for live tokens."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from servery_gateway.keys import (
    ApiKey,
    ApiKeyInvalidError,
    Permission,
    digest_of,
    narrowed,
    new_key_id,
    new_secret,
)
from servery_gateway.store import Store
from servery_gateway.tenants import Tenant, TenantExistsError
from servery_gateway.tokens import TOKEN_TTL, SigningKey, Token, require_fit
from servery_rpc.errors import FieldInvalidError
from servery_rpc.names import ApiKeyName, TenantName

DENIED_FOR: Final = TOKEN_TTL + timedelta(minutes=1)
"""How long after a revocation a token of the key may still seem valid, clocks that differ and an
exchange under way included."""


def utc_now() -> datetime:
    """Return the time, as everything here counts it."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyring:
    """The gateway's tenants and keys. Safe to use from one event loop."""

    store: Store

    pepper: bytes
    """The secret that digests of keys are made with."""

    signing_key: Callable[[datetime], SigningKey]
    """Returns the key to sign with at a time."""

    deny: Callable[[], Awaitable[None]]
    """Returns once tokens of `denied_keys` are refused everywhere."""

    now: Callable[[], datetime] = utc_now

    async def ensure_tenants(self, tenants: Iterable[str]) -> None:
        """Create those tenants, by their ids, that do not exist yet."""
        for tenant in sorted(set(tenants)):
            with contextlib.suppress(TenantExistsError):
                await self.create_tenant(TenantName(tenant), "")

    async def create_tenant(self, name: TenantName, display_name: str) -> Tenant:
        """Create a tenant.

        Raises:
            TenantExistsError: Its name is taken.
        """
        tenant = Tenant(name=name, display_name=display_name, create_time=self.now())
        await asyncio.to_thread(self.store.add_tenant, tenant)
        return tenant

    async def tenant(self, name: TenantName) -> Tenant:
        """See `Store.tenant`."""
        return await asyncio.to_thread(self.store.tenant, name)

    async def tenants(self, limit: int, after: str | None) -> list[Tenant]:
        """See `Store.tenants`."""
        return await asyncio.to_thread(self.store.tenants, limit, after)

    async def create_key(
        self,
        tenant: TenantName,
        display_name: str,
        permissions: tuple[Permission, ...],
        expire_time: datetime | None,
    ) -> tuple[ApiKey, str]:
        """Create a key; return it and its secret, which is kept nowhere.

        Raises:
            FieldInvalidError: It would be expired, or its permissions are too long for a token.
            TenantNotFoundError: The tenant does not exist.
        """
        require_fit(permissions, "api_key.permissions")
        now = self.now()
        if expire_time is not None and expire_time <= now:
            raise FieldInvalidError(
                "api_key.expire_time", expire_time.isoformat(), f"be after {now.isoformat()}"
            )
        key = ApiKey(
            name=ApiKeyName(tenant.tenant, new_key_id()),
            display_name=display_name,
            permissions=permissions,
            create_time=now,
            expire_time=expire_time,
            revoke_time=None,
        )
        secret = new_secret()
        await asyncio.to_thread(self.store.add_key, key, digest_of(secret, self.pepper))
        return key, secret

    async def keys(
        self, tenant: TenantName, limit: int, after: ApiKeyName | None
    ) -> Sequence[ApiKey]:
        """See `Store.keys`."""
        return await asyncio.to_thread(self.store.keys, tenant, limit, after)

    async def exchange(
        self,
        secret: str,
        wanted: Sequence[Permission] = (),
        valid_for: timedelta = TOKEN_TTL,
    ) -> tuple[ApiKey, Token]:
        """Return the key of `secret` and a token for its holder.

        Args:
            secret: Of the key.
            wanted: What the token shall permit; none: all that the key does.
            valid_for: How long the token shall be valid at most.

        Raises:
            ApiKeyInvalidError: It is not the secret of a usable key.
            PermissionDeniedError: More is wanted than the key permits.
        """
        digest = digest_of(secret, self.pepper)
        key = await asyncio.to_thread(self.store.key_of_secret, digest)
        now = self.now()
        if key is None or not key.usable(now):
            raise ApiKeyInvalidError
        permissions = narrowed(key, wanted)
        return key, self.signing_key(now).mint(key, now, permissions, valid_for)

    async def revoke_key(self, name: ApiKeyName) -> ApiKey:
        """Revoke a key, return when its tokens are refused.

        Raises:
            ApiKeyNotFoundError: There is none of this name.
            DependencyUnavailableError: The key is revoked, but it is not known whether its live
                tokens are refused yet. Try again.
        """
        key = await asyncio.to_thread(self.store.revoke_key, name, self.now())
        await self.deny()
        return key
