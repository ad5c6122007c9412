"""Sets the routes of models, and what that means for the data plane."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from servery_gateway.cluster_watch import ClusterWatch
from servery_gateway.model_routes import ModelRoute
from servery_gateway.route_store import RouteStore
from servery_gateway.routes import http_cluster, pool_cluster
from servery_gateway.snapshot import ConfigurationRejectedError
from servery_gateway.store import Store
from servery_rpc.names import ModelName, TenantName


@dataclass(frozen=True, slots=True)
class PoolWarning:
    """Why calls by a route that is in force may fail."""

    problem: Literal["warming", "no_healthy_server"]
    message: str
    pool: str = ""
    """Empty: it is not known which."""


class Routing:
    """Sets routes. Safe to use from one event loop.

    Args:
        store: Knows the tenants.
        routes: Keeps the routes.
        pools: The names of all pools.
        refresh: Returns once the data plane works by what the stores hold.
        clusters: Knows what the data plane reports of its clusters.
    """

    def __init__(
        self,
        store: Store,
        routes: RouteStore,
        pools: Sequence[str],
        refresh: Callable[[], Awaitable[None]],
        clusters: ClusterWatch,
    ) -> None:
        self._store = store
        self._routes = routes
        self.pools = tuple(sorted(pools))
        self._refresh = refresh
        self._clusters = clusters

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

    def warnings(self, route: ModelRoute) -> Sequence[PoolWarning]:
        """Return what is wrong with the pools of a route, as the data plane reported it last."""
        found = [
            PoolWarning(
                "no_healthy_server",
                f"no {door} of the pool {pool} is healthy, so calls that go there are refused"
                " until one is",
                pool,
            )
            for pool in route.all_pools
            for door, cluster in (("server", pool_cluster), ("HTTP door", http_cluster))
            if self._clusters.without_server(cluster(pool))
        ]
        if self._clusters.any_warming():
            message = "some servers that changed are not known yet; pools of theirs work as before"
            found.append(PoolWarning("warming", message))
        return found
