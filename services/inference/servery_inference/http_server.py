"""The life of the HTTP port: bind, serve, drain."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from servery_inference.http_limits import BoundedHttpProtocol


class AdoptingHttp:
    """Serves HTTP connections that another process accepted.

    Args:
        server: Listens nowhere.
    """

    def __init__(self, server: uvicorn.Server) -> None:
        self._server = server

    @property
    def num_connections(self) -> int:
        """Connections that are open."""
        return len(self._server.server_state.connections)

    async def adopt(self, connected: socket.socket) -> None:
        """Serve a connection from now on."""
        server = self._server
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: BoundedHttpProtocol(server.config, server.server_state, server.lifespan.state),
            connected,
        )


@asynccontextmanager
async def serving_http(app: Any, listen: str, drain_s: float) -> AsyncIterator[str]:
    """Serve an ASGI application inside the block; drain when it is left.

    Args:
        app: The application.
        listen: `host:port`, where port 0 means a free one, or `unix:/path`.
        drain_s: How long running requests may take to finish.

    Yields:
        Where it listens, as `host:port` or `unix:/path`.

    Raises:
        RuntimeError: The address cannot be bound.
    """
    with listening(listen) as (bound, address):
        async with _running(app, [bound], drain_s):
            yield address


@asynccontextmanager
async def adopting_http(app: Any, drain_s: float) -> AsyncIterator[AdoptingHttp]:
    """Serve an ASGI application to whom another process accepted; see `serving_http`."""
    async with _running(app, [], drain_s) as server:
        yield AdoptingHttp(server)


@asynccontextmanager
async def _running(
    app: Any, sockets: list[socket.socket], drain_s: float
) -> AsyncIterator[uvicorn.Server]:
    config = uvicorn.Config(
        app,
        http=BoundedHttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    # Not `serve`: that takes the signals, which belong to the process.
    await server.startup(sockets=sockets)
    serving = asyncio.create_task(server.main_loop())
    try:
        yield server
    finally:
        server.should_exit = True
        await serving
        await server.shutdown(sockets=sockets)


@contextmanager
def listening(listen: str) -> Iterator[tuple[socket.socket, str]]:
    """Hold a bound socket for the length of the block.

    Args:
        listen: `host:port`, where port 0 means a free one, or `unix:/path`.

    Yields:
        The socket, and its address as `host:port` or `unix:/path`.

    Raises:
        RuntimeError: The address cannot be bound.
    """
    bound, address = _bind(listen)
    try:
        with bound:
            yield bound, address
    finally:
        if listen.startswith("unix:"):
            Path(listen.removeprefix("unix:")).unlink(missing_ok=True)


def _bind(listen: str) -> tuple[socket.socket, str]:
    is_unix = listen.startswith("unix:")
    bound = socket.socket(socket.AF_UNIX if is_unix else _family(listen), socket.SOCK_STREAM)
    try:
        if is_unix:
            path = Path(listen.removeprefix("unix:"))
            path.unlink(missing_ok=True)
            before = os.umask(0o177)  # The socket is this user's alone from its first moment.
            try:
                bound.bind(str(path))
            finally:
                os.umask(before)
            return bound, listen
        host, _, port = listen.rpartition(":")
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host.strip("[]"), int(port)))
    except OSError as error:
        bound.close()
        raise RuntimeError(f"cannot listen for HTTP on {listen}: {error.strerror}") from None
    return bound, f"{host}:{bound.getsockname()[1]}"


def _family(listen: str) -> socket.AddressFamily:
    return socket.AF_INET6 if listen.startswith("[") else socket.AF_INET
