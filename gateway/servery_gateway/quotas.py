"""Sets quotas, and what that means for the data plane."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from servery_gateway.background import in_thread
from servery_gateway.quota import Owner, Quota
from servery_gateway.quota_store import QuotaStore
from servery_gateway.snapshot import ConfigurationRejectedError
from servery_gateway.store import Store
from servery_gateway.usage import day_of
from servery_rpc.errors import ServeryError

log = logging.getLogger(__name__)


_FOLLOW_EVERY_S: Final = 0.5


class Quotas:
    """Sets quotas. Safe to use from one event loop.

    Args:
        store: Knows the tenants and keys.
        quotas: Keeps the quotas.
        refresh: Returns once the data plane works by what the stores hold.
        now: Returns the time.
    """

    def __init__(
        self,
        store: Store,
        quotas: QuotaStore,
        refresh: Callable[[], Awaitable[None]],
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._quotas = quotas
        self._refresh = refresh
        self._now = now

    async def set(self, owner: Owner, quota: Quota) -> None:
        """Replace a quota; return when it is in force.

        Raises:
            TenantNotFoundError: There is no such tenant.
            ApiKeyNotFoundError: There is no such key.
            ConfigurationRejectedError: The data plane refused it; the one before is back.
            DependencyUnavailableError: It is stored, but it is not known whether it is in force.
        """
        before = await self.get(owner)
        await asyncio.to_thread(self._quotas.set, str(owner), quota)
        try:
            await self._refresh()
        except ConfigurationRejectedError:
            await asyncio.to_thread(self._quotas.set, str(owner), before)
            raise

    async def get(self, owner: Owner) -> Quota:
        """Return a quota; one that was never set has no limits.

        Raises:
            TenantNotFoundError: There is no such tenant.
            ApiKeyNotFoundError: There is no such key.
        """
        await asyncio.to_thread(self._store.require, owner)
        return await asyncio.to_thread(self._quotas.get, str(owner))

    async def requests_today(self, owner: Owner) -> int:
        """Return how many calls of today, in UTC, count against `requests_per_day`."""
        today = day_of(self._now())
        return await asyncio.to_thread(self._quotas.requests_of, str(owner), today)

    async def follow(self) -> None:
        """Refuse who has used up its day, and let it call again on the next; until cancelled."""
        refused: frozenset[str] = frozenset()
        while True:
            await asyncio.sleep(_FOLLOW_EVERY_S)
            try:
                spent = await in_thread(self._quotas.spent, day_of(self._now()))
                if spent != refused:
                    await self._refresh()
                    refused = spent
            except ServeryError as error:
                log.error("daily quotas are not in force: %s", error)
