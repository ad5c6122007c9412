"""Routes of models on disk. Every method blocks; what it wrote is durable when it returns."""

import json

from sqlalchemy import Engine, select, tuple_
from sqlalchemy.orm import Session

from servery_gateway.database import RouteRow
from servery_gateway.model_routes import ModelRoute
from servery_rpc.names import ModelName


class RouteStore:
    """The only place that reads and writes routes. Safe to use from many threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def set(self, route: ModelRoute) -> None:
        """Replace the route of a model; one that is as if never set is forgotten."""
        model = route.model
        with Session(self._engine) as session, session.begin():
            row = session.get(RouteRow, (model.tenant, model.model))
            if route == ModelRoute(model=model):
                if row is not None:
                    session.delete(row)
                return
            session.merge(
                RouteRow(
                    tenant=model.tenant,
                    model=model.model,
                    pools=json.dumps(route.pools),
                    mirror_pool=route.mirror_pool,
                )
            )

    def get(self, model: ModelName) -> ModelRoute:
        """Return the route of a model; that of one that was never set is the default."""
        with Session(self._engine) as session:
            row = session.get(RouteRow, (model.tenant, model.model))
            return ModelRoute(model=model) if row is None else _route(row)

    def list(self, limit: int | None = None, after: ModelName | None = None) -> list[ModelRoute]:
        """Return up to `limit` routes that were set, by name, those behind the model `after`."""
        order = tuple_(RouteRow.tenant, RouteRow.model)
        query = select(RouteRow).order_by(RouteRow.tenant, RouteRow.model).limit(limit)
        if after is not None:
            query = query.where(order > tuple_(after.tenant, after.model))
        with Session(self._engine) as session:
            return [_route(row) for row in session.scalars(query)]


def _route(row: RouteRow) -> ModelRoute:
    return ModelRoute(
        model=ModelName(row.tenant, row.model),
        pools=tuple((pool, weight) for pool, weight in json.loads(row.pools)),
        mirror_pool=row.mirror_pool,
    )
