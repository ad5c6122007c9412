"""What calls come in by: the gRPC server and the application behind HTTP, before one repository."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import grpc

from servery.inference.pool import pool
from servery_inference.endpoint import InferEndpoint
from servery_inference.express import Express
from servery_inference.in_flight import InFlight
from servery_inference.repository import Repository
from servery_inference.rpcs import SERVICE, Handlers, register
from servery_inference.servicer import EXTENSIONS, InferenceServicer
from servery_inference.settings import InferenceSettings
from servery_inference.shared_memory import SharedMemory
from servery_inference.short_infer import register_short
from servery_rpc.server import RunningServer, Service, Transport, serving

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from servery_rpc.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Doors:
    """A gRPC server that accepts calls, and what it takes to serve HTTP beside it."""

    server: RunningServer
    ready: asyncio.Event
    servicer: InferenceServicer
    handlers: Handlers
    endpoint: InferEndpoint
    repository: Repository
    in_flight: InFlight
    settings: InferenceSettings
    telemetry: "Telemetry | None"

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: InferenceSettings,
        repository: Repository,
        memory: SharedMemory | None,
        others: Handlers,
        transport: Transport,
        telemetry: "Telemetry | None",
    ) -> AsyncIterator[Self]:
        """Serve gRPC for the length of the block, not ready yet; then drain.

        Args:
            settings: Where and how.
            repository: The models.
            memory: Regions that tensors may be in; None if there are none.
            others: The methods that do not answer from `repository` alone.
            transport: What carries the calls.
            telemetry: Traces them; None to trace none.

        Raises:
            RuntimeError: The address cannot be bound.
        """
        ready = asyncio.Event()
        in_flight = InFlight(settings.workers)
        endpoint, express = InferEndpoint(repository, memory), Express(repository, in_flight)
        extensions = (*EXTENSIONS, *(["system_shared_memory"] if memory else ()))
        servicer = InferenceServicer(repository, endpoint, ready.is_set, in_flight, extensions)
        handlers = {**servicer.handlers(), **others}

        def register_all(server: grpc.aio.Server) -> None:
            register_short(express, server)
            register(handlers, server)

        async with serving(
            settings,
            Service(SERVICE, register_all, ready=False),
            pools=(pool(),),
            transport=transport,
            telemetry=telemetry,
        ) as server:
            yield cls(
                server=server,
                ready=ready,
                servicer=servicer,
                handlers=handlers,
                endpoint=endpoint,
                repository=repository,
                in_flight=in_flight,
                settings=settings,
                telemetry=telemetry,
            )

    async def announce_ready(self) -> None:
        """Let the server say from now on that it is ready."""
        self.ready.set()
        await self.server.set_ready(SERVICE, ready=True)
        await self.server.set_ready("", ready=True)

    def http_app(self) -> "Starlette":
        """Make the application that answers over HTTP."""
        from servery_inference.http_door import http_app  # Only here, for what it takes.

        return http_app(
            self.handlers,
            self.endpoint,
            self.repository,
            self.in_flight,
            self.settings.max_message_bytes,
            self.telemetry,
        )
