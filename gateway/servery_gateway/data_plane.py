"""Keeps the configuration of the connected Envoys equal to what the gateway knows."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from servery_gateway.ads import AdsServer
from servery_gateway.translation import GatewayState, translate


class DataPlane:
    """The Envoys, as the rest of the gateway sees them. Belongs to one event loop.

    Args:
        ads: Speaks with the Envoys.
        state: What does not change while the process runs.
        denied_keys: Returns the resource names of the keys whose tokens are refused; may block.
    """

    def __init__(
        self, ads: AdsServer, state: GatewayState, denied_keys: Callable[[], frozenset[str]]
    ) -> None:
        self._ads = ads
        self._state = state
        self._denied_keys = denied_keys
        self._refreshing = asyncio.Lock()

    async def refresh(self) -> None:
        """Return once every connected Envoy works by what the gateway knows now.

        Raises:
            ConfigurationRejectedError: An Envoy refused it; nothing changed.
            DependencyUnavailableError: An Envoy did not answer in time.
        """
        async with self._refreshing:
            denied = await asyncio.to_thread(self._denied_keys)
            snapshot = await asyncio.to_thread(translate, replace(self._state, denied_keys=denied))
            await self._ads.publish(snapshot)
