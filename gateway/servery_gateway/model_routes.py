"""Routes of models: which pools of inference servers answer, and with what share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from servery_rpc.errors import FieldInvalidError
from servery_rpc.names import ModelName

DEFAULT_POOL: Final = "default"

_MAX_POOLS: Final = 10
_MAX_WEIGHT: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRoute:
    """Where the calls about one model go."""

    model: ModelName

    pools: tuple[tuple[str, int], ...] = ((DEFAULT_POOL, 1),)
    """Pools and their weights; at least one."""

    mirror_pool: str = ""
    """Gets a copy of every unary call; empty: none does."""

    @property
    def all_pools(self) -> tuple[str, ...]:
        """Every pool that gets calls or copies of them, each once."""
        mirror = (self.mirror_pool,) if self.mirror_pool else ()
        return tuple(dict.fromkeys((*(pool for pool, _ in self.pools), *mirror)))


def parse_route(
    model: ModelName, pools: Sequence[tuple[str, int]], mirror_pool: str, known: Sequence[str]
) -> ModelRoute:
    """Parse what is asked for.

    Raises:
        FieldInvalidError: There are too many pools, one comes twice or is not in `known`, or a
            weight is out of its range.
    """
    if len(pools) > _MAX_POOLS:
        raise FieldInvalidError("route.pools", len(pools), f"have at most {_MAX_POOLS} items")
    for index, (pool, weight) in enumerate(pools):
        here = f"route.pools[{index}]"
        _require_known(pool, f"{here}.pool", known)
        if pool in (other for other, _ in pools[:index]):
            raise FieldInvalidError(f"{here}.pool", pool, "come once only")
        if not 1 <= weight <= _MAX_WEIGHT:
            raise FieldInvalidError(f"{here}.weight", weight, f"be 1 to {_MAX_WEIGHT}")
    if mirror_pool:
        _require_known(mirror_pool, "route.mirror_pool", known)
    whole = tuple(pools) or ((DEFAULT_POOL, 1),)
    return ModelRoute(model=model, pools=whole, mirror_pool=mirror_pool)


def _require_known(pool: str, field: str, known: Sequence[str]) -> None:
    if pool not in known:
        raise FieldInvalidError(field, pool, f"be one of {', '.join(known)}")
