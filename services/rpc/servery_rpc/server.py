"""The life of one gRPC server: bind, serve, drain."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from servery_rpc.guarded_server import GuardedServer
from servery_rpc.interceptor import ServeryInterceptor
from servery_rpc.reflection import add_reflection
from servery_rpc.settings import ServerSettings

if TYPE_CHECKING:
    from servery_rpc.telemetry import Telemetry

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, slots=True)
class Service:
    """One gRPC service to serve."""

    name: str
    """Full name, such as `servery.registry.v1.RegistryService`."""

    register: Callable[[grpc.aio.Server], None]
    """Adds its handlers to a server."""

    ready: bool = True
    """Whether it is SERVING from the start; if not, `RunningServer.set_ready` says when."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that accepts calls."""

    address: str
    """What a client dials: `host:port`, or `unix:/path`."""

    _health: health_aio.HealthServicer

    async def set_ready(self, service: str, *, ready: bool) -> None:
        """Report `service` (empty: the whole server) as SERVING or not to health watchers."""
        await self._health.set(service, SERVING if ready else NOT_SERVING)


class Transport(Protocol):
    """What carries the calls: grpcio, or another server with its surface."""

    def open(self, settings: ServerSettings, interceptor: ServeryInterceptor) -> grpc.aio.Server:
        """Return a server that does not listen yet."""

    def bind(self, server: Any, settings: ServerSettings) -> int:
        """Let a server from `open` listen on `settings.listen`; return the port, 1 for a socket.

        Raises:
            RuntimeError: It cannot.
        """


@asynccontextmanager
async def serving(
    settings: ServerSettings,
    *services: Service,
    pools: Sequence[DescriptorPool] = (),
    described: Sequence[str] | None = None,
    transport: Transport | None = None,
    telemetry: Telemetry | None = None,
) -> AsyncIterator[RunningServer]:
    """Serve inside the block, with health and reflection; drain when it is left.

    On leaving, health turns NOT_SERVING, new calls are refused, and running ones get
    `settings.drain_s` seconds to finish.

    Args:
        settings: Where and how.
        *services: What.
        pools: Private descriptor pools that reflection must know.
        described: Full names of the services that reflection tells of; None means `services`.
        transport: What carries the calls; None means grpcio.
        telemetry: Traces the calls; None means what `settings` say.

    Raises:
        RuntimeError: `settings.listen` cannot be bound.
    """
    transport = transport or GrpcioTransport()
    async with AsyncExitStack() as stack:
        telemetry = telemetry or await stack.enter_async_context(exporting(settings))
        server = transport.open(settings, ServeryInterceptor(telemetry))
        health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        for service in services:
            service.register(server)
            await health.set(service.name, SERVING if service.ready else NOT_SERVING)
        await health.set("", SERVING if all(s.ready for s in services) else NOT_SERVING)
        if described is None:
            described = [*(service.name for service in services), "grpc.health.v1.Health"]
        add_reflection(server, described, pools)
        address = _bind(transport, server, settings)
        await server.start()
        try:
            yield RunningServer(address, health)
        finally:
            await health.enter_graceful_shutdown()
            await server.stop(settings.drain_s)


@asynccontextmanager
async def exporting(settings: ServerSettings) -> AsyncIterator[Telemetry | None]:
    """Export traces for the length of the block, if `settings` say where to; else give None."""
    if settings.otlp_endpoint is None:
        yield None
        return
    from servery_rpc.telemetry import Telemetry  # Only here, for what it takes.

    async with Telemetry.exporting(settings) as telemetry:
        yield telemetry


class GrpcioTransport:
    """Calls over grpcio."""

    def open(self, settings: ServerSettings, interceptor: ServeryInterceptor) -> grpc.aio.Server:
        """See `Transport`."""
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),  # Else a second server shares the port unnoticed.
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                # By default a client that pings more often than every 5 minutes is thrown out,
                # which hits Go clients in their common configuration.
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        return GuardedServer(server, interceptor)

    def bind(self, server: grpc.aio.Server, settings: ServerSettings) -> int:
        """See `Transport`."""
        if settings.tls_certificate and settings.tls_key:
            credentials = grpc.ssl_server_credentials(
                [(settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes())]
            )
            return server.add_secure_port(settings.listen, credentials)
        return server.add_insecure_port(settings.listen)


def _bind(transport: Transport, server: grpc.aio.Server, settings: ServerSettings) -> str:
    if settings.listen.startswith("unix:"):
        before = os.umask(0o177)  # The socket is this user's alone from its first moment.
        try:
            transport.bind(server, settings)
        finally:
            os.umask(before)
        return settings.listen
    port = transport.bind(server, settings)
    return f"{settings.listen.rpartition(':')[0]}:{port}"
