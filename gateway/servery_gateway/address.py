"""Where a gRPC server of the platform is reached, parsed."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

_MAX_SOCKET_PATH = 100  # The kernel's limit is 108 with its NUL.


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class HostAddress:
    """A TCP port of a host, which is named or an IP address."""

    host: str
    port: int

    @property
    def is_ip(self) -> bool:
        """Whether the host is an IP address, so that nothing has to resolve it."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


Address = UnixAddress | HostAddress


def parse_address(text: str, name: str) -> Address:
    """Parse `unix:PATH` or `host:port`; a relative path becomes absolute.

    Args:
        text: The address.
        name: Of the setting it is the value of, for the error.

    Raises:
        ValueError: `text` is neither, its port is not 1 to 65535, or its path is too long.
    """
    if text.startswith("unix:"):
        path = str(Path(text.removeprefix("unix:")).absolute())
        if len(path.encode()) > _MAX_SOCKET_PATH:
            raise ValueError(
                f"{name} is {text!r}: a unix socket path has at most {_MAX_SOCKET_PATH} bytes"
            )
        return UnixAddress(path)
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and 1 <= int(port) <= 65535):
        raise ValueError(
            f"{name} must be unix:PATH or host:port with port 1 to 65535, not {text!r}"
        )
    host = host.strip("[]")
    return HostAddress("127.0.0.1" if host == "localhost" else host, int(port))
