"""The life of the HTTP port: bind, serve, drain."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn

from servery_inference.http_limits import BoundedHttpProtocol


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
    bound, address = _bind(listen)
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    # Not `serve`: that takes the signals, which belong to the process.
    await server.startup(sockets=[bound])
    serving = asyncio.create_task(server.main_loop())
    try:
        yield address
    finally:
        server.should_exit = True
        await serving
        await server.shutdown(sockets=[bound])
        if listen.startswith("unix:"):
            await asyncio.to_thread(Path(listen.removeprefix("unix:")).unlink, missing_ok=True)


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
