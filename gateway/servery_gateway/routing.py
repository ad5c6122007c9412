"""Sets the routes of models, and what that means for the data plane."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from servery_gateway.model_routes import ModelRoute
from servery_gateway.route_store import RouteStore
from servery_gateway.snapshot import ConfigurationRejectedError
from servery_gateway.store import Store
from servery_rpc.names import ModelName, TenantName


class Routing:
    """Sets routes. Safe to use from one event loop.

    Args:
        store: Knows the tenants.
        routes: Keeps the routes.
        pools: The names of all pools.
        refresh: Returns once the data plane works by what the stores hold.
    """

    def __init__(
        self,
        store: Store,
        routes: RouteStore,
        pools: Sequence[str],
        refresh: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._routes = routes
        self.pools = tuple(sorted(pools))
        self._refresh = refresh

    async def set(self, route: ModelRoute) -> None:
        """Replace a route; return when it is in force.

        Raises:
            TenantNotFoundError: There is no such tenant.
            ConfigurationRejectedError: The data plane refused it; the one before is back.
            DependencyUnavailableError: It is stored, but it is not known whether it is in force.
        """
        before = await self.get(route.model)
        await asyncio.to_thread(self._routes.set, route)
        try:
            await self._refresh()
        except ConfigurationRejectedError:
            await asyncio.to_thread(self._routes.set, before)
            raise

    async def get(self, model: ModelName) -> ModelRoute:
        """Return the route of a model; that of one that was never set is the default.

        Raises:
            TenantNotFoundError: There is no such tenant.
        """
        await asyncio.to_thread(self._store.tenant, TenantName(model.tenant))
        return await asyncio.to_thread(self._routes.get, model)

    async def list(self, limit: int, after: ModelName | None) -> list[ModelRoute]:
        """See `RouteStore.list`."""
        return await asyncio.to_thread(self._routes.list, limit, after)
