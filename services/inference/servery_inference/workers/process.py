"""One worker process, as its parent sees it: begun, told what to do, and ended."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from subprocess import DEVNULL, Popen
from typing import Final, Self

from servery_inference.workers import passing
from servery_inference.workers.channel import EMPTY, Channel, Handle, Parcel, PeerGoneError
from servery_inference.workers.orders import Loaded, Order

_START_S: Final = 60.0
_END_S: Final = 5.0
"""For what a process does behind its drain."""


class WorkerProcess:
    """One that runs.

    Args:
        place: Its number among the workers, from 0; whoever replaces it has the same.
        process: Of the system.
        connections: Where connections are passed to it.
    """

    def __init__(self, place: int, process: "Popen[bytes]", connections: socket.socket) -> None:
        self.place = place
        self.pid = process.pid
        self.is_following = False
        """Whether it has loaded what all have, and is told what changes."""

        self.is_serving = False
        """Whether it does all that the others do, and gets connections."""

        self._process = process
        self._connections = connections
        self._channel: Channel | None = None
        self._greeted = asyncio.Event()
        self._num_passed = 0
        self._num_closed = 0
        self._loads: dict[int, asyncio.Task[Loaded]] = {}

    @classmethod
    @asynccontextmanager
    async def running(
        cls, place: int, flags: Sequence[str], handlers: Mapping[str, Handle], drain_s: float
    ) -> AsyncIterator[Self]:
        """Have one for the length of the block; then let it drain, and end it.

        Args:
            place: Its number.
            flags: Its settings.
            handlers: What answers its requests, by method.
            drain_s: How long that may take.

        Raises:
            PeerGoneError: It does not start.
        """
        control, control_there = socket.socketpair()
        connections, connections_there = socket.socketpair(type=socket.SOCK_SEQPACKET)
        connections.settimeout(0)
        with connections, control:
            with control_there, connections_there:
                descriptors = (control_there.fileno(), connections_there.fileno())
                # Not by another thread: the process ends with the thread that begins it.
                process = Popen(  # noqa: S603, ASYNC220  it is this program; the fork takes milliseconds
                    [
                        *(sys.executable, "-m", "servery_inference.workers.worker"),
                        *(*map(str, descriptors), *flags),
                    ],
                    stdin=DEVNULL,
                    pass_fds=descriptors,
                )
            try:
                worker = cls(place, process, connections)
                async with Channel.over(control, {**handlers, **worker._handlers()}) as channel:
                    worker._channel = channel
                    await worker._started()
                    try:
                        yield worker
                    finally:
                        await worker._drained(drain_s)
            finally:
                process.kill()
                await asyncio.to_thread(process.wait)

    @property
    def channel(self) -> Channel:
        """To it."""
        if self._channel is None:
            raise PeerGoneError
        return self._channel

    @property
    def num_connections(self) -> int:
        """Connections that it serves, as far as is known."""
        return self._num_passed - self._num_closed

    def give(self, door: bytes, connection: socket.socket) -> bool:
        """Pass a connection to it; return whether that could be done."""
        was_passed = passing.send(self._connections, door, connection)
        self._num_passed += was_passed
        return was_passed

    async def load(self, order: Order) -> Loaded:
        """Let it load a version, if it was not told to before, and wait for that.

        Raises:
            LoadFailedError: It must not answer requests.
            PeerGoneError: The process ended.
        """
        if order.number not in self._loads:
            self._loads[order.number] = asyncio.create_task(self._load(order))
        return await asyncio.shield(self._loads[order.number])

    async def drop(self, number: int) -> None:
        """Let it forget a version that it was told to load, once its requests are answered."""
        if self._loads.pop(number, None):
            with contextlib.suppress(PeerGoneError):
                await self.channel.call("drop", {"number": number})

    async def _load(self, order: Order) -> Loaded:
        parcel = order.to_parcel()
        return Loaded.from_parcel(await self.channel.call("load", parcel.fields, parcel.body))

    def _handlers(self) -> dict[str, Handle]:
        async def hello(_: Parcel) -> Parcel:
            self._greeted.set()
            return EMPTY

        async def leaving(_: Parcel) -> Parcel:
            self.is_serving = False
            return EMPTY

        async def closed(parcel: Parcel) -> Parcel:
            self._num_closed = parcel.fields["count"]
            return EMPTY

        return {"hello": hello, "leaving": leaving, "closed": closed}

    async def _started(self) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (self._greeted, self.channel.gone)]
        try:
            await asyncio.wait(waits, timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not self._greeted.is_set():
            raise PeerGoneError

    async def _drained(self, drain_s: float) -> None:
        self.is_serving = False
        self._process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s + _END_S):
                await self.channel.gone.wait()
