"""Connections that one process accepts and another serves.

The kernel would spread few connections badly: over two listeners of one port by a hash, over one
listener to whoever wakes first (docs/adr/0011). So the parent accepts, and passes each connection
to the worker that has the fewest.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

GRPC: Final = b"g"
HTTP: Final = b"h"
"""The doors that a connection may be for."""

_RETRY_S: Final = 0.1
_MAX_PASSED: Final = 64

Adopt = Callable[[socket.socket], Awaitable[None]]
"""Serves a connection that another process accepted."""

Pass = Callable[[bytes, socket.socket], None]
"""Gives a connection away, with the byte that tells its door."""

log = logging.getLogger(__name__)


async def accept(
    listener: socket.socket, door: bytes, give: Pass, someone: Callable[[], Awaitable[None]]
) -> None:
    """Accept connections for ever, and give them away.

    Args:
        listener: Listens, and does not block.
        door: One byte that tells what is spoken there.
        give: Keeps no connection.
        someone: Returns once there is somebody to give them to; until then it waits, and others do.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            connection, _ = await loop.sock_accept(listener)
        except OSError as error:  # No descriptor is left, or the peer is gone already.
            log.warning("a connection is not accepted: %s", error.strerror)
            await asyncio.sleep(_RETRY_S)
            continue
        with connection:
            await someone()
            give(door, connection)


def send(channel: socket.socket, door: bytes, connection: socket.socket) -> bool:
    """Pass a connection to the process at the other end; return whether it took it."""
    try:
        socket.send_fds(channel, [door], [connection.fileno()])
    except OSError:  # It is gone, or far behind.
        return False
    return True


class Receiver:
    """Takes connections over. For one event loop.

    Args:
        channel: Where they come from: a socket of packets.
        doors: What serves them, by their byte.
    """

    def __init__(self, channel: socket.socket, doors: Mapping[bytes, Adopt]) -> None:
        self._channel = channel
        self._doors = doors
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_taken = 0

    @property
    def num_adopted(self) -> int:
        """Connections that came so far and were adopted, or failed to be."""
        return self._num_taken - len(self._tasks)

    def start(self) -> None:
        """Take them from now on."""
        self._channel.settimeout(0)
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._receive)

    async def stop(self) -> None:
        """Take what was sent, and no more."""
        self._receive()
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            for _ in range(_MAX_PASSED):
                door, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
                if not descriptors:
                    break
                self._num_taken += 1
                connection = socket.socket(fileno=descriptors[0])
                connection.settimeout(0)
                task = asyncio.create_task(self._adopt(door, connection))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                asyncio.get_running_loop().call_soon(self._receive)
                return
            if not door:  # The other end is closed.
                asyncio.get_running_loop().remove_reader(self._channel.fileno())

    async def _adopt(self, door: bytes, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # The peer left, or TLS failed.
            await self._doors[door](connection)
