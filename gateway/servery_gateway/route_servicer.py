"""servery.gateway.v1.RouteService: parse, call, render."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

from typing import Any

import grpc

from servery.gateway.v1 import route_pb2 as pb
from servery.gateway.v1 import route_pb2_grpc as pb_grpc
from servery_gateway.model_routes import ModelRoute, parse_route
from servery_gateway.routing import Routing
from servery_rpc.identity import caller_of
from servery_rpc.names import DEFAULT_TENANT, ModelName
from servery_rpc.pages import page_token, parse_page

Context = grpc.aio.ServicerContext


class RouteServicer(pb_grpc.RouteServiceServicer):
    """Sets and tells routes."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    async def SetRoute(
        self, request: pb.SetRouteRequest, context: Context[Any, Any]
    ) -> pb.SetRouteResponse:
        """See route.proto."""
        caller_of(context).require("admin", DEFAULT_TENANT)
        asked = request.route
        route = parse_route(
            ModelName.parse(asked.name, "route.name"),
            [(pool.pool, pool.weight) for pool in asked.pools],
            asked.mirror_pool,
            self._routing.pools,
        )
        await self._routing.set(route)
        return pb.SetRouteResponse(route=self._to_proto(route))

    async def GetRoute(
        self, request: pb.GetRouteRequest, context: Context[Any, Any]
    ) -> pb.GetRouteResponse:
        """See route.proto."""
        caller_of(context).require("admin", DEFAULT_TENANT)
        route = await self._routing.get(ModelName.parse(request.name))
        return pb.GetRouteResponse(route=self._to_proto(route))

    async def ListRoutes(
        self, request: pb.ListRoutesRequest, context: Context[Any, Any]
    ) -> pb.ListRoutesResponse:
        """See route.proto."""
        caller_of(context).require("admin", DEFAULT_TENANT)
        page = parse_page(request.page_size, request.page_token, "routes")
        after = ModelName.parse(page.after, "page_token") if page.after else None
        routes = await self._routing.list(page.size + 1, after)
        more = len(routes) > page.size
        routes = routes[: page.size]
        return pb.ListRoutesResponse(
            routes=[self._to_proto(route) for route in routes],
            next_page_token=page_token("routes", str(routes[-1].model)) if more else "",
            pools=self._routing.pools,
        )

    def _to_proto(self, route: ModelRoute) -> pb.Route:
        return pb.Route(
            name=str(route.model),
            pools=[pb.WeightedPool(pool=pool, weight=weight) for pool, weight in route.pools],
            mirror_pool=route.mirror_pool,
            warnings=[
                pb.PoolWarning(
                    pool=warning.pool,
                    problem=pb.PoolProblem.Value(f"POOL_PROBLEM_{warning.problem.upper()}"),
                    message=warning.message,
                )
                for warning in self._routing.warnings(route)
            ],
        )
