"""Refuses identities, and what that means for the data plane."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

from servery_gateway.revocation_store import RevocationStore, RevokedIdentity
from servery_gateway.store import Store
from servery_rpc.names import IdentityName, TenantName


class Revocations:
    """Revokes and restores identities. Safe to use from one event loop.

    Args:
        store: Knows the tenants.
        revoked: Keeps the revoked identities.
        refresh: Returns once the data plane works by what the stores hold.
        now: Returns the time.
    """

    def __init__(
        self,
        store: Store,
        revoked: RevocationStore,
        refresh: Callable[[], Awaitable[None]],
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._revoked = revoked
        self._refresh = refresh
        self._now = now

    async def revoke(self, name: IdentityName) -> RevokedIdentity:
        """Refuse an identity; return when it is refused everywhere.

        Raises:
            TenantNotFoundError: Its tenant does not exist.
            DependencyUnavailableError: It is revoked, but it is not known whether it is refused
                yet. Try again.
        """
        await asyncio.to_thread(self._store.require, name)
        revoked = await asyncio.to_thread(self._revoked.add, name, self._now())
        await self._refresh()
        return revoked

    async def restore(self, name: IdentityName) -> None:
        """Refuse an identity no longer; raises as `revoke` does."""
        await asyncio.to_thread(self._store.require, name)
        await asyncio.to_thread(self._revoked.remove, name)
        await self._refresh()

    async def list(
        self, tenant: TenantName, limit: int, after: IdentityName | None
    ) -> Sequence[RevokedIdentity]:
        """See `RevocationStore.list`.

        Raises:
            TenantNotFoundError: There is no such tenant.
        """
        await asyncio.to_thread(self._store.require, tenant)
        return await asyncio.to_thread(self._revoked.list, tenant, limit, after)
