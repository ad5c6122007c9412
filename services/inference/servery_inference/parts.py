"""Parts that an inference process is made of, as its settings say."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from servery_inference.cache import BundleCache
from servery_inference.directory import DirectorySource
from servery_inference.graph_cache import GraphCache
from servery_inference.loading import Loader
from servery_inference.registry import RegistrySource
from servery_inference.repository import Repository, ServableLoader
from servery_inference.sandbox import Sandbox
from servery_inference.settings import InferenceSettings
from servery_inference.trace_settings import TraceSettings

if TYPE_CHECKING:
    from servery_rpc.telemetry import Telemetry


async def known_graphs(settings: InferenceSettings) -> GraphCache | None:
    """Open what was found out about graphs before, if it is kept.

    Raises:
        OSError: The directory of the cache cannot be used.
    """
    if settings.cache_dir is None:
        return None
    return await asyncio.to_thread(GraphCache, settings.cache_dir / "graphs")


@asynccontextmanager
async def admission(
    settings: InferenceSettings, graphs: GraphCache | None
) -> AsyncIterator[Sandbox | None]:
    """Be ready to open graphs in a throw-away process for the length of the block, if wanted."""
    if settings.admission is None:
        yield None
        return
    async with Sandbox.open(settings.admission, graphs) as sandbox:
        yield sandbox


@contextmanager
def loader_of(
    settings: InferenceSettings,
    sandbox: Sandbox | None,
    traces: TraceSettings,
    telemetry: "Telemetry | None",
    graphs: GraphCache | None,
) -> Iterator[Loader]:
    """Hold, for the length of the block, what loads versions into this process."""
    tracing = None
    if telemetry:
        from servery_inference.tracing import Tracing  # Only here, for what it takes.

        tracing = Tracing(telemetry.tracer, traces)
    limit = settings.model_memory_limit_bytes
    with Loader.open(
        settings.engine,
        None if limit is None else settings.share(limit),
        settings.share(settings.max_waiting_requests),
        settings.share(settings.response_cache_bytes),
        sandbox,
        settings.limiter,
        tracing,
        graphs,
    ) as loader:
        yield loader


async def fill(
    settings: InferenceSettings,
    repository: Repository,
    loader: ServableLoader,
    stack: AsyncExitStack,
) -> tuple[asyncio.Event, DirectorySource | None]:
    """Begin to fill the repository.

    Returns:
        What is set once it is known what to serve, and the directory, if that is where it is from.

    Raises:
        OSError: The directory of models or of the cache cannot be used.
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
