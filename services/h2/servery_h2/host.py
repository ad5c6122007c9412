"""What the connections of one server share."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from servery_h2.limits import Limits
from servery_h2.methods import Methods

if TYPE_CHECKING:
    from servery_h2.connection import Connection


@dataclass(slots=True)
class Memory:
    """Request bytes that wait for more bytes or for a handler."""

    limit: int
    held: int = 0


@dataclass(slots=True)
class Host:
    """Methods and limits for every connection, and the connections themselves."""

    methods: Methods
    limits: Limits
    memory: Memory
    connections: set[Connection] = field(default_factory=set)
    running: set[asyncio.Future[Any]] = field(default_factory=set)
    """Handlers that run, also those whose calls are over: the loop keeps no reference to tasks."""
    stopping: bool = False
    _empty: asyncio.Event | None = None

    def admit(self, connection: Connection) -> bool:
        """Count `connection` in, unless there are too many or the server stops."""
        if self.stopping or len(self.connections) >= self.limits.max_connections:
            return False
        self.connections.add(connection)
        return True

    def forget(self, connection: Connection) -> None:
        """Count `connection` out."""
        self.connections.discard(connection)
        if not self.connections and self._empty is not None:
            self._empty.set()

    async def emptied(self, timeout_s: float) -> None:
        """Wait until no connection is left, or `timeout_s` passed. For one caller at a time."""
        if not self.connections:
            return
        self._empty = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
