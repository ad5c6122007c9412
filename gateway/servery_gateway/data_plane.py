"""Keeps the configuration of the connected Envoys equal to what the gateway knows."""

import asyncio
from collections.abc import Callable

from servery_gateway.ads import AdsServer
from servery_gateway.methods import methods
from servery_gateway.translation import GatewayState, translate


class DataPlane:
    """The Envoys, as the rest of the gateway sees them. Belongs to one event loop.

    Args:
        ads: Speaks with the Envoys.
        state: Returns what the gateway knows; may block.
    """

    def __init__(self, ads: AdsServer, state: Callable[[], GatewayState]) -> None:
        self._ads = ads
        self._state = state
        self._refreshing = asyncio.Lock()

    async def refresh(self) -> None:
        """Return once every connected Envoy works by what the gateway knows now.

        Raises:
            ConfigurationRejectedError: An Envoy refused it; nothing changed.
            DependencyUnavailableError: An Envoy did not answer in time.
        """
        async with self._refreshing:
            await self._ads.publish(
                await asyncio.to_thread(lambda: translate(self._state(), methods()))
            )
