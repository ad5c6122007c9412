"""Routes: which pools of inference servers answer the calls about a model.

For administrators of `tenants/default`.
"""

from collections.abc import Iterator, Mapping

from servery.connection import Connection
from servery.gateway.v1 import route_pb2 as pb
from servery.gateway.v1 import route_pb2_grpc as pb_grpc


class Routes:
    """The routes of models."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = pb_grpc.RouteServiceStub(connection.channel)

    def set(self, model: str, pools: Mapping[str, int], mirror: str = "") -> pb.Route:
        """Replace the route of a model; it is in force when this returns.

        Args:
            model: Id or resource name.
            pools: Pool to its share of the sum of all; empty: all goes to `default`.
            mirror: Pool that gets a copy of every unary call; empty: none.
        """
        route = pb.Route(
            name=self._name(model),
            pools=[pb.WeightedPool(pool=pool, weight=weight) for pool, weight in pools.items()],
            mirror_pool=mirror,
        )
        request = pb.SetRouteRequest(route=route)
        return self._connection.unary(self._stub.SetRoute, request).route

    def get(self, model: str) -> pb.Route:
        """Return the route of a model, by id or resource name."""
        request = pb.GetRouteRequest(name=self._name(model))
        return self._connection.unary(self._stub.GetRoute, request).route

    def list(self) -> Iterator[pb.Route]:
        """Yield every route that was set, by name."""
        request = pb.ListRoutesRequest()
        while True:
            page = self._connection.unary(self._stub.ListRoutes, request)
            yield from page.routes
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def pools(self) -> tuple[str, ...]:
        """Return the names of all pools."""
        request = pb.ListRoutesRequest(page_size=1)
        return tuple(self._connection.unary(self._stub.ListRoutes, request).pools)

    def _name(self, model: str) -> str:
        return model if "/" in model else f"{self._connection.tenant}/models/{model}"
