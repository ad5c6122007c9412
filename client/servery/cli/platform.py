"""The whole platform on one machine: which processes, with which settings, and when ready."""

import asyncio
import contextlib
import http.client
import importlib.util
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from servery.cli.supervisor import Program

PACKAGES: Final = {
    "servery_registry": "registry",
    "servery_trainer": "trainer",
    "servery_inference": "inference",
    "servery_gateway": "gateway",
}
"""What must be importable, and the extra that installs it."""

_MAX_SOCKET_PATH: Final = 100
_LAST_LOGS_S: Final = 1.0
"""Within which Envoy tells the gateway of its last calls; it sends what it has every 0.2 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Where one platform keeps its data and listens."""

    data_dir: Path
    """Absolute. All state; survives restarts."""

    address: str
    """`host:port` that clients dial."""

    tls_certificate: Path | None = None
    tls_key: Path | None = None

    def __post_init__(self) -> None:
        """Refuse a data directory too deep for the sockets in it.

        Raises:
            ValueError: Its path is too long.
        """
        longest = self.socket("inference").removeprefix("unix:")
        if len(longest) > _MAX_SOCKET_PATH:
            room = _MAX_SOCKET_PATH - (len(longest) - len(str(self.data_dir)))
            raise ValueError(
                f"the data directory's path has {len(str(self.data_dir))} characters; the sockets"
                f" in it allow at most {room}"
            )

    @property
    def log_dir(self) -> Path:
        """Where each process logs, as `{name}.log`."""
        return self.data_dir / "logs"

    def socket(self, name: str) -> str:
        """Return the private address of a process."""
        return f"unix:{self.data_dir / 'run' / name}.sock"

    def programs(self) -> list[Program]:
        """Return the five processes, in the order in which to start them."""
        admin = EnvoyAdmin(self.data_dir / "run" / "admin.sock")
        return [
            self._server("registry"),
            self._server(
                "inference",
                *("--registry", self.socket("registry")),
                *("--http-listen", self.socket("http")),
                *("--cache-dir", str(self.data_dir / "inference")),
                data_dir=False,
            ),
            self._server("trainer", "--registry", self.socket("registry")),
            self._server(
                "gateway",
                *("--public-listen", self.address),
                *(("--registry", self.socket("registry"))),
                *(("--trainer", self.socket("trainer"))),
                *(("--inference", self.socket("inference"))),
                *(("--inference-http", self.socket("http"))),
                *(
                    ("--public-tls-certificate", str(self.tls_certificate))
                    if self.tls_certificate
                    else ()
                ),
                *(("--public-tls-key", str(self.tls_key)) if self.tls_key else ()),
            ),
            Program(
                "envoy",
                [
                    *(sys.executable, "-m", "servery_gateway.envoy"),
                    *("--ads", self.socket("gateway")),
                    *("--run-dir", str(self.data_dir / "run")),
                    *("--fallback", str(self.data_dir / "gateway" / "configuration")),
                ],
                admin.ready,
                admin.drain,
            ),
        ]

    def _server(self, name: str, *arguments: str, data_dir: bool = True) -> Program:
        place = ("--data-dir", str(self.data_dir / name)) if data_dir else ()
        argv = [
            *(sys.executable, "-m", f"servery_{name}"),
            *("--listen", self.socket(name)),
            *place,
            *arguments,
        ]
        return Program(name, argv, healthy(self.socket(name)))


def missing_packages() -> list[str]:
    """Return the extras that are not installed."""
    return [
        extra for package, extra in PACKAGES.items() if importlib.util.find_spec(package) is None
    ]


def healthy(address: str) -> Callable[[], Awaitable[bool]]:
    """Return a question: is the server at `address` SERVING, as `grpc.health.v1` has it?"""
    serving = b"\x08\x01"  # HealthCheckResponse(status=SERVING); no health stubs in the client.

    async def ask() -> bool:
        async with grpc.aio.insecure_channel(address) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check", _as_is, _as_is)
            try:
                return await check(b"", timeout=2) == serving
            except grpc.aio.AioRpcError:
                return False

    return ask


@dataclass(frozen=True, slots=True)
class EnvoyAdmin:
    """The administration interface of an Envoy."""

    socket: Path

    async def ready(self) -> bool:
        """Tell whether it has its configuration, listens, and found every upstream healthy.

        Raises:
            OSError: No Envoy answers there.
        """
        # Envoy calls itself ready also when it could not bind its listener.
        live = await self._ask("GET", "/ready") == "LIVE"
        return live and await self._ask("GET", "/listeners") != "" and await self._all_healthy()

    async def _all_healthy(self) -> bool:
        lines = (await self._ask("GET", "/stats?filter=membership_(healthy|total)$")).splitlines()
        hosts = dict(line.split(": ") for line in lines)
        return all(
            hosts[name.removesuffix("total") + "healthy"] == count
            for name, count in hosts.items()
            if name.endswith("total")
        )

    async def drain(self) -> None:
        """Take no new connections, ask clients to go, and return when every call is accounted for.

        Raises:
            OSError: No Envoy answers there.
        """
        await self._ask("POST", "/drain_listeners?graceful")
        active = "http.public.downstream_rq_active"
        # Envoy has no event for it.
        while await self._ask("GET", f"/stats?filter=^{active}$") != f"{active}: 0":  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        await asyncio.sleep(_LAST_LOGS_S)

    async def _ask(self, method: str, path: str) -> str:
        return await asyncio.to_thread(self._ask_blocking, method, path)

    def _ask_blocking(self, method: str, path: str) -> str:
        connection = http.client.HTTPConnection("localhost")
        with contextlib.closing(connection):
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(5)
            connection.sock.connect(str(self.socket))
            connection.request(method, path)
            return connection.getresponse().read().decode().strip()


def _as_is(message: bytes) -> bytes:
    return message
