"""The life of the inference process: its parts, wired in one place for `main` and for tests."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY

from servery_inference.control_servicer import RepositoryControl
from servery_inference.diagnosis_servicer import DiagnosisServicer
from servery_inference.doors import Doors
from servery_inference.log_switch import LogSwitch
from servery_inference.metrics import RepositoryCollector, exported, machine_collectors
from servery_inference.parts import admission, fill, known_graphs, loader_of
from servery_inference.repository import Repository
from servery_inference.sessions import require_provider
from servery_inference.settings import InferenceSettings
from servery_inference.shared_memory import SharedMemory
from servery_inference.shared_memory_servicer import SharedMemoryServicer
from servery_inference.trace_settings import TraceSettings
from servery_inference.transport import TRANSPORTS
from servery_rpc.server import exporting

if TYPE_CHECKING:
    from servery_inference.workers.merged_metrics import MergedMetrics

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
async def serving_inference(
    settings: InferenceSettings, metrics: "MergedMetrics | None" = None
) -> AsyncIterator[RunningInference]:
    """Serve inside the block; drain when it is left.

    Args:
        settings: What, where and how.
        metrics: Where those of workers are added, if there are any.

    Raises:
        RuntimeError: The execution provider cannot be used, or the address cannot be bound.
        OSError: The directory of models or of the cache cannot be used.
    """
    require_provider(settings.engine.provider)
    if settings.workers > 1:
        from servery_inference.workers.serving import serving_by_workers

        async with serving_by_workers(settings, metrics) as running:
            yield running
        return
    async with AsyncExitStack() as stack:
        telemetry = await stack.enter_async_context(exporting(settings))
        traces = TraceSettings(is_exported=telemetry is not None)
        graphs = await known_graphs(settings)
        sandbox = await stack.enter_async_context(admission(settings, graphs))
        loader = stack.enter_context(loader_of(settings, sandbox, traces, telemetry, graphs))
        repository = await stack.enter_async_context(Repository(loader))
        machine = stack.enter_context(machine_collectors())
        stack.enter_context(exported(REGISTRY, RepositoryCollector(repository), *machine))
        informed, directory = await fill(settings, repository, loader, stack)
        switch = stack.enter_context(LogSwitch.installed())
        memory = stack.enter_context(SharedMemory.open()) if settings.shared_memory else None
        others = {
            **RepositoryControl(repository, directory).handlers(),
            **SharedMemoryServicer(memory).handlers(),
            **DiagnosisServicer(repository, switch, traces).handlers(),
        }
        transport = TRANSPORTS[settings.transport]()
        doors = await stack.enter_async_context(
            Doors.open(settings, repository, memory, others, transport, telemetry)
        )
        http_address = await _http_door(settings, doors, stack)
        announcing = asyncio.create_task(_announce(doors, repository, informed))
        try:
            yield RunningInference(doors.server.address, doors.ready, http_address)
        finally:
            announcing.cancel()
            doors.ready.clear()


async def _http_door(
    settings: InferenceSettings, doors: Doors, stack: AsyncExitStack
) -> str | None:
    """Serve HTTP too, if that is wanted; return where."""
    if settings.http_address is None:
        return None
    from servery_inference.http_server import serving_http  # Only here, for its 7 MB of memory.

    address = await stack.enter_async_context(
        serving_http(doors.http_app(), settings.http_address, settings.drain_s)
    )
    log.info("inference listens for HTTP on %s", address)
    return address


async def _announce(doors: Doors, repository: Repository, informed: asyncio.Event) -> None:
    await informed.wait()
    await repository.settled()
    await doors.announce_ready()
    log.info("inference is ready")
