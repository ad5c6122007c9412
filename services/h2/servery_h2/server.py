"""A gRPC server: ports, handlers, start, graceful stop."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import grpc

from servery_h2.connection import Connection
from servery_h2.host import Host, Memory
from servery_h2.limits import Limits
from servery_h2.listening import BACKLOG, Bound, bind
from servery_h2.methods import Methods, RawHandler
from servery_h2.tls import ReloadingTls, TlsFiles

log = logging.getLogger(__name__)

Adopt = Callable[[socket.socket], Awaitable[None]]
"""Serves a connection that another process accepted."""

_TICK_S: Final = 1.0
_TLS_CHECK_TICKS: Final = 10
_FLUSH_S: Final = 1.0  # For the last bytes and cancelled handlers, after the grace.


@dataclass(frozen=True, slots=True)
class _Port:
    bound: Bound
    tls: ReloadingTls | None


class Server(grpc.aio.Server):
    """Serves gRPC over HTTP/2 on the running loop; handlers are those of grpc.aio.

    Args:
        limits: What one peer may cost.
        interceptors: Around every handler but raw ones, first one outermost. They are asked once
            per method, with empty metadata, and what they return is kept.
        reuse_port: Let several processes listen on one port.
        max_buffered_bytes: Request bytes of all calls that may wait in memory for more bytes or for
            their handlers; beyond it calls are RESOURCE_EXHAUSTED.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        reuse_port: bool = False,
        max_buffered_bytes: int = 1 << 30,
    ) -> None:
        self._host = Host(Methods(interceptors), limits or Limits(), Memory(max_buffered_bytes))
        self._reuse_port = reuse_port
        self._ports: list[_Port] = []
        self._listeners: list[asyncio.Server] = []
        self._stopped = asyncio.Event()
        self._ticker: asyncio.Task[None] | None = None

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[Any]) -> None:
        """Serve what these handlers know, as grpc.aio does."""
        self._host.methods.add_generic(generic_rpc_handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, Any]
    ) -> None:
        """Serve `/{service_name}/{name}` for every name, as grpc.aio does."""
        self._host.methods.add_registered(service_name, method_handlers)

    def add_raw_unary_handler(self, path: str, handler: RawHandler) -> None:
        """Serve the unary method `path` by `handler`, which gets and gives serialized messages.

        It runs inline: without a task, a context or interceptors. Whatever of these a call needs,
        the handler does, by its second argument: the stream, with `metadata`, `peer` and
        `time_remaining`. It raises `StatusError` to end a call otherwise. What it does not want to
        answer goes to the ordinary handler of `path`, see `RawOutcome`.
        """
        self._host.methods.add_raw(path, handler)

    def add_insecure_port(self, address: str) -> int:
        """Bind `address` without TLS; return its port.

        Raises:
            RuntimeError: It cannot be bound.
        """
        return self._add(address, None)

    def add_tls_port(self, address: str, files: TlsFiles) -> int:
        """Bind `address` with TLS; return its port. Changed files are taken up while serving.

        Raises:
            RuntimeError: It cannot be bound.
            OSError: A file cannot be read.
            ssl.SSLError: The files do not fit together.
        """
        return self._add(address, ReloadingTls(files))

    def add_secure_port(self, address: str, server_credentials: Any) -> NoReturn:
        """Refuse: the credentials of grpc cannot be read. Use `add_tls_port`."""
        raise TypeError("add_secure_port is not for this server; use add_tls_port")

    def add_adopted_port(self, files: TlsFiles | None = None) -> Adopt:
        """Return what serves connections that another process accepted, from `start` on.

        What it returns takes a connected socket, and raises `OSError` if TLS with it fails.

        Args:
            files: For TLS, which are taken up anew when they change; None for no TLS.

        Raises:
            OSError: A file cannot be read.
            ssl.SSLError: The files do not fit together.
        """
        port = _Port(Bound([], 0), ReloadingTls(files) if files else None)
        self._ports.append(port)

        async def adopt(connected: socket.socket) -> None:
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(
                lambda: Connection(self._host, loop), connected, **self._tls_options(port)
            )

        return adopt

    @property
    def num_connections(self) -> int:
        """Connections that are open."""
        return len(self._host.connections)

    def reload_tls(self) -> None:
        """Use the TLS files as they are now, for new connections.

        Raises:
            OSError: A file cannot be read; the old ones stay in use.
            ssl.SSLError: The files do not fit together; the old ones stay in use.
        """
        for port in self._ports:
            if port.tls is not None:
                port.tls.reload()

    async def start(self) -> None:
        """Accept connections."""
        loop = asyncio.get_running_loop()
        for port in self._ports:
            tls = self._tls_options(port)
            for sock in port.bound.sockets:
                options: dict[str, Any] = {"sock": sock, "backlog": BACKLOG, **tls}
                create = loop.create_unix_server if port.bound.port == 1 else loop.create_server
                self._listeners.append(
                    await create(lambda: Connection(self._host, loop), **options)
                )
        self._ticker = loop.create_task(self._tick())

    async def stop(self, grace: float | None) -> None:
        """Stop accepting, tell the peers to go, and give calls `grace` seconds to end.

        Calls that are on their way when it begins are still served. None is no grace at all.
        """
        loop = asyncio.get_running_loop()
        self._host.stopping = True
        for listener in self._listeners:
            listener.close()
        now = loop.time()
        for connection in list(self._host.connections):
            connection.life.drain(now, grace or 0.0)
        await self._host.emptied(grace or 0.0)
        for connection in list(self._host.connections):
            connection.shut()
        await self._host.emptied(_FLUSH_S)
        for connection in list(self._host.connections):
            connection.abort()
        if self._host.running:
            await asyncio.wait(self._host.running, timeout=_FLUSH_S)
        await self._finish()

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """Wait until `stop` is done; return whether `timeout` seconds passed before."""
        try:
            await asyncio.wait_for(self._stopped.wait(), timeout)
        except TimeoutError:
            return True
        return False

    async def _finish(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker
        for port in self._ports:
            for sock in port.bound.sockets:
                sock.close()
            if port.bound.path is not None:
                port.bound.path.unlink(missing_ok=True)
        self._stopped.set()

    def _add(self, address: str, tls: ReloadingTls | None) -> int:
        bound = bind(address, reuse_port=self._reuse_port)
        self._ports.append(_Port(bound, tls))
        return bound.port

    def _tls_options(self, port: _Port) -> dict[str, Any]:
        if port.tls is None:
            return {}
        return {
            "ssl": port.tls.context,
            "ssl_handshake_timeout": self._host.limits.handshake_s,
            "ssl_shutdown_timeout": 1.0,
        }

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        ticks = 0
        while True:
            await asyncio.sleep(_TICK_S)
            ticks += 1
            now = loop.time()
            for connection in list(self._host.connections):
                try:
                    connection.tick(now)
                except Exception:
                    log.exception("%s is closed: its clock failed", connection.peer)
                    connection.abort()
            if ticks % _TLS_CHECK_TICKS == 0:
                for port in self._ports:
                    if port.tls is not None:
                        await asyncio.to_thread(port.tls.reload_if_changed)
