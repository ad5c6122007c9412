"""Addresses as gRPC writes them, and the sockets that listen on them."""

import errno
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BACKLOG: Final = 1024


@dataclass(frozen=True, slots=True)
class Bound:
    """Sockets bound to one address; they listen once asyncio serves them."""

    sockets: list[socket.socket]
    port: int
    """The TCP port; 1 for a unix socket, as grpcio says it."""
    path: Path | None = None
    """The file of a unix socket, to be removed at the end."""


def bind(address: str, *, reuse_port: bool) -> Bound:
    """Bind `host:port`, `[ipv6]:port`, `unix:path` or `unix-abstract:name`.

    Args:
        address: Where. Port 0 lets the kernel pick. A unix socket file left by a dead process is
            replaced; a live one is not.
        reuse_port: Let other processes bind the same port, and the kernel spread connections.

    Raises:
        RuntimeError: It cannot be bound.
    """
    try:
        if address.startswith("unix-abstract:"):
            return Bound([_unix("\0" + address.removeprefix("unix-abstract:"))], 1)
        if address.startswith("unix:"):
            name = address.removeprefix("unix:")
            path = Path(name.removeprefix("//") if name.startswith("//") else name)
            _remove_if_dead(path)
            return Bound([_unix(str(path))], 1, path)
        return _tcp(address, reuse_port=reuse_port)
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise RuntimeError(f"cannot bind {address}: {reason}") from None


def _tcp(address: str, *, reuse_port: bool) -> Bound:
    host, _, port_text = address.rpartition(":")
    if not port_text.isdigit():
        raise ValueError("it must be host:port")
    port = int(port_text)
    host = host.removeprefix("[").removesuffix("]")
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, place in dict.fromkeys(found):
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError:  # A family this machine has not.
                continue
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind((place[0], port, *place[2:]))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                sockets.remove(sock)  # `localhost` names ::1 where there is no IPv6.
                sock.close()
                continue
            port = sock.getsockname()[1]
        if not sockets:
            raise ValueError("no such address on this machine")
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return Bound(sockets, port)


def _unix(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(name)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_if_dead(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
