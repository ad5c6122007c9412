"""How many requests of a tenant or a key are answered at once.

The gateway tells the limits with every call, because a quota may change while a token lives.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from servery_inference.access import Context
from servery_rpc.errors import QuotaExceededError

LIMITS_HEADER: Final = "x-servery-in-flight"
"""Metadata in which the gateway gives places: `tenants/a=8,tenants/a/apiKeys/k=2`."""

_RETRY_AFTER_MS: Final = 100


class InFlight:
    """Counts what is being answered, for owners that have a limit. For one event loop.

    Args:
        processes: How many share a limit: each gives an even part of it, rounded up.
    """

    def __init__(self, processes: int = 1) -> None:
        self._processes = processes
        self._places: dict[str, int] = {}

    @contextmanager
    def place(self, context: Context) -> Iterator[None]:
        """Take a place for one request of this call for the length of the block.

        Raises:
            QuotaExceededError: Its tenant or key has as many as it may.
        """
        owners = [] if (limits := _limits(context)) is None else self._free(limits)
        for owner in owners:
            self._places[owner] = self._places.get(owner, 0) + 1
        try:
            yield
        finally:
            for owner in owners:
                self._places[owner] -= 1
                if not self._places[owner]:
                    del self._places[owner]

    def has_room(self, limits: str) -> bool:
        """Tell whether all that `limits`, as in the header, names have a place left."""
        try:
            return bool(self._free(limits))
        except QuotaExceededError:
            return False

    def _free(self, limits: str) -> list[str]:
        owners = []
        for part in limits.split(","):
            owner, _, limit = part.partition("=")
            if self._places.get(owner, 0) >= -(-int(limit) // self._processes):
                raise QuotaExceededError(
                    "requests_in_flight",
                    _RETRY_AFTER_MS,
                    f"{owner} has {limit} requests in flight, as many as its quota allows; wait for"
                    " an answer, or ask an administrator for a higher quota",
                )
            owners.append(owner)
        return owners


def _limits(context: Context) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == LIMITS_HEADER:
            return str(value)
    return None
