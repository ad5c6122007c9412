"""The life of the inference process: its parts, wired in one place for `main` and for tests."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from prometheus_client import REGISTRY

from servery.inference.pool import pool
from servery_inference.cache import BundleCache
from servery_inference.control_servicer import RepositoryControl
from servery_inference.diagnosis_servicer import DiagnosisServicer
from servery_inference.directory import DirectorySource
from servery_inference.endpoint import InferEndpoint
from servery_inference.express import Express
from servery_inference.graph_cache import GraphCache
from servery_inference.in_flight import InFlight
from servery_inference.loading import Loader
from servery_inference.log_switch import LogSwitch
from servery_inference.metrics import exported
from servery_inference.registry import RegistrySource
from servery_inference.repository import Repository
from servery_inference.rpcs import SERVICE, Handlers, register
from servery_inference.sandbox import Sandbox
from servery_inference.servicer import EXTENSIONS, InferenceServicer
from servery_inference.sessions import require_provider
from servery_inference.settings import InferenceSettings
from servery_inference.shared_memory import SharedMemory
from servery_inference.shared_memory_servicer import SharedMemoryServicer
from servery_inference.short_infer import register_short
from servery_inference.trace_settings import TraceSettings
from servery_inference.transport import TRANSPORTS
from servery_rpc.server import RunningServer, Service, exporting, serving

if TYPE_CHECKING:
    from servery_rpc.telemetry import Telemetry

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunningInference:
    """An inference server that accepts calls."""

    address: str
    """What a client dials."""

    ready: asyncio.Event
    """Set once the models to begin with are settled: each serves, or says why not."""

    http_address: str | None
    """Where it serves HTTP, as `host:port` or `unix:/path`; None for nowhere."""


@asynccontextmanager
async def serving_inference(settings: InferenceSettings) -> AsyncIterator[RunningInference]:
    """Serve inside the block; drain when it is left.

    Raises:
        RuntimeError: The execution provider cannot be used, or the address cannot be bound.
        OSError: The directory of models or of the cache cannot be used.
    """
    require_provider(settings.engine.provider)
    ready = asyncio.Event()
    async with AsyncExitStack() as stack:
        telemetry = await stack.enter_async_context(exporting(settings))
        traces, tracing = TraceSettings(is_exported=telemetry is not None), None
        if telemetry:
            from servery_inference.tracing import Tracing  # Only here, for what it takes.

            tracing = Tracing(telemetry.tracer, traces)
        graphs = None
        if settings.cache_dir:
            graphs = await asyncio.to_thread(GraphCache, settings.cache_dir / "graphs")
        sandbox = None
        if settings.admission:
            sandbox = await stack.enter_async_context(Sandbox.open(settings.admission, graphs))
        loader = stack.enter_context(
            Loader.open(
                settings.engine,
                settings.model_memory_limit_bytes,
                settings.max_waiting_requests,
                settings.response_cache_bytes,
                sandbox,
                settings.limiter,
                tracing,
                graphs,
            )
        )
        repository = await stack.enter_async_context(Repository(loader))
        stack.enter_context(exported(repository, REGISTRY))
        informed, directory = await _source(settings, repository, loader, stack)
        switch = stack.enter_context(LogSwitch.installed())
        memory = stack.enter_context(SharedMemory.open()) if settings.shared_memory else None
        in_flight = InFlight()
        endpoint, express = InferEndpoint(repository, memory), Express(repository, in_flight)
        extensions = (*EXTENSIONS, *(["system_shared_memory"] if memory else ()))
        handlers = {
            **InferenceServicer(
                repository, endpoint, ready.is_set, in_flight, extensions
            ).handlers(),
            **RepositoryControl(repository, directory).handlers(),
            **SharedMemoryServicer(memory).handlers(),
            **DiagnosisServicer(repository, switch, traces).handlers(),
        }

        def register_all(server: grpc.aio.Server) -> None:
            register_short(express, server)
            register(handlers, server)

        server = await stack.enter_async_context(
            serving(
                settings,
                Service(SERVICE, register_all, ready=False),
                pools=(pool(),),
                transport=TRANSPORTS[settings.transport](),
                telemetry=telemetry,
            )
        )
        http_address = await _http_door(
            settings, handlers, endpoint, repository, in_flight, telemetry, stack
        )
        announcing = asyncio.create_task(_announce(server, repository, informed, ready))
        try:
            yield RunningInference(server.address, ready, http_address)
        finally:
            announcing.cancel()
            ready.clear()


async def _source(
    settings: InferenceSettings, repository: Repository, loader: Loader, stack: AsyncExitStack
) -> tuple[asyncio.Event, DirectorySource | None]:
    """Begin to fill the repository.

    Returns:
        What is set once it is known what to serve, and the directory, if that is where it is from.
    """
    if settings.registry and settings.cache_dir:
        cache = await asyncio.to_thread(BundleCache, settings.cache_dir)
        source = await stack.enter_async_context(
            RegistrySource.following(settings.registry, cache, repository, loader)
        )
        return source.informed, None
    informed = asyncio.Event()
    informed.set()
    if not settings.model_repository:
        return informed, None
    root, refresh = settings.model_repository, None
    if settings.object_store and settings.cache_dir:
        from servery_inference.object_storage import Mirror  # Only here, for what it takes.

        root = settings.cache_dir / "repository"
        mirror = await asyncio.to_thread(Mirror.open, settings.object_store, root)
        refresh = mirror.refresh
    directory = await stack.enter_async_context(
        DirectorySource.serving(
            root,
            settings.control_mode,
            settings.load_model,
            settings.repository_poll_secs,
            repository,
            refresh,
        )
    )
    return informed, directory


async def _http_door(
    settings: InferenceSettings,
    handlers: Handlers,
    endpoint: InferEndpoint,
    repository: Repository,
    in_flight: InFlight,
    telemetry: "Telemetry | None",
    stack: AsyncExitStack,
) -> str | None:
    """Serve HTTP too, if that is wanted; return where."""
    if settings.http_address is None:
        return None
    # Only here, for they take 7 MB of memory.
    from servery_inference.http_door import http_app
    from servery_inference.http_server import serving_http

    limit = settings.max_message_bytes
    app = http_app(handlers, endpoint, repository, in_flight, limit, telemetry)
    address = await stack.enter_async_context(
        serving_http(app, settings.http_address, settings.drain_s)
    )
    log.info("inference listens for HTTP on %s", address)
    return address


async def _announce(
    server: RunningServer, repository: Repository, informed: asyncio.Event, ready: asyncio.Event
) -> None:
    await informed.wait()
    await repository.settled()
    ready.set()
    await server.set_ready(SERVICE, ready=True)
    await server.set_ready("", ready=True)
    log.info("inference is ready")
