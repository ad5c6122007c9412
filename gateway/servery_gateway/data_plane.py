"""Keeps the configuration of the connected Envoys equal to what the gateway knows."""

import asyncio
import logging
from collections.abc import Callable

from servery_gateway.ads import AdsServer
from servery_gateway.background import in_thread
from servery_gateway.configuration_files import ConfigurationFiles
from servery_gateway.methods import methods
from servery_gateway.translation import GatewayState, translate

log = logging.getLogger(__name__)


class DataPlane:
    """The Envoys, as the rest of the gateway sees them. Belongs to one event loop.

    Args:
        ads: Speaks with the Envoys.
        files: Keep what is in force for an Envoy that starts while this process does not run.
        state: Returns what the gateway knows; may block.
    """

    def __init__(
        self, ads: AdsServer, files: ConfigurationFiles, state: Callable[[], GatewayState]
    ) -> None:
        self._ads = ads
        self._files = files
        self._state = state
        self._refreshing = asyncio.Lock()

    async def refresh(self) -> None:
        """Return once every connected Envoy works by what the gateway knows now.

        Raises:
            ConfigurationRejectedError: An Envoy refused it; nothing changed.
            DependencyUnavailableError: An Envoy did not answer in time.
        """
        async with self._refreshing:
            snapshot = await in_thread(lambda: translate(self._state(), methods()))
            await self._ads.publish(snapshot)
            try:
                await in_thread(self._files.keep, snapshot)
            except OSError as error:
                log.error("the configuration in force cannot be kept: %s", error)
