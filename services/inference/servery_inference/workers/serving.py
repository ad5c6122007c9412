"""The life of an inference server with workers: its parts in the parent, wired in one place."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

from prometheus_client import REGISTRY

from servery_h2.listening import BACKLOG, bind
from servery_inference.control_servicer import RepositoryControl
from servery_inference.diagnosis_servicer import DiagnosisServicer
from servery_inference.log_switch import LogSwitch
from servery_inference.metrics import exported, machine_collectors
from servery_inference.parts import admission, fill, known_graphs
from servery_inference.repository import Repository
from servery_inference.serving import RunningInference
from servery_inference.settings import InferenceSettings
from servery_inference.shared_memory import SharedMemory
from servery_inference.shared_memory_servicer import SharedMemoryServicer
from servery_inference.trace_settings import TraceSettings
from servery_inference.workers.announcements import Announcements
from servery_inference.workers.merged_metrics import MergedMetrics, WorkerCounts
from servery_inference.workers.passing import GRPC, HTTP, accept
from servery_inference.workers.process import WorkerProcess
from servery_inference.workers.relay import Relay
from servery_inference.workers.shared_loader import SharedLoader
from servery_inference.workers.supervisor import Supervisor
from servery_rpc.settings import arguments

log = logging.getLogger(__name__)


@asynccontextmanager
async def serving_by_workers(
    settings: InferenceSettings, metrics: MergedMetrics | None
) -> AsyncIterator[RunningInference]:
    """Serve inside the block by several processes; let all drain when it is left.

    This process answers no requests: it decides what is served, accepts connections, and answers
    what concerns the whole server.

    Args:
        settings: What, where and how.
        metrics: Where those of the workers are added.

    Raises:
        RuntimeError: An address cannot be bound, or a process cannot be started.
        OSError: The directory of models or of the cache cannot be used.
    """
    async with AsyncExitStack() as stack:
        listeners, address = stack.enter_context(_bound(settings.listen))
        doors = [(GRPC, listener) for listener in listeners]
        http_address = None
        if settings.http_address is not None:
            from servery_inference.http_server import listening  # Only here, for its memory.

            listener, http_address = stack.enter_context(listening(settings.http_address))
            doors.append((HTTP, listener))
        sandbox = await stack.enter_async_context(admission(settings, await known_graphs(settings)))
        # A worker drains its HTTP connections first, then those of gRPC.
        supervisor = Supervisor(settings.workers, arguments(settings), 2 * settings.drain_s)
        loader = SharedLoader(supervisor, sandbox)
        repository = await stack.enter_async_context(Repository(loader))
        announcements = Announcements(repository, supervisor)
        informed, directory = await fill(settings, repository, loader, stack)
        switch = stack.enter_context(LogSwitch.installed())
        memory = stack.enter_context(SharedMemory.open()) if settings.shared_memory else None
        traces = TraceSettings(is_exported=settings.otlp_endpoint is not None)
        handlers = {
            **RepositoryControl(repository, directory).handlers(),
            **SharedMemoryServicer(memory).handlers(),
            **DiagnosisServicer(repository, switch, traces).handlers(),
        }
        relay = Relay(handlers, supervisor, announcements.heard)

        async def welcome(worker: WorkerProcess) -> None:
            await loader.catch_up(worker)
            announcements.begin(worker)
            await relay.repeat(worker)

        await stack.enter_async_context(
            supervisor.running({"rpc": relay.answer, "admit": loader.admit}, welcome)
        )
        machine = stack.enter_context(machine_collectors())
        stack.enter_context(exported(REGISTRY, WorkerCounts(supervisor), *machine))
        if metrics is not None:
            stack.enter_context(metrics.of(supervisor))
        ready = asyncio.Event()

        async def announce() -> None:
            await supervisor.all_serving()
            await informed.wait()
            await repository.settled()
            announcements.announce_ready()
            await announcements.heard()
            ready.set()
            log.info("inference is ready, by %s workers", settings.workers)

        tasks = [asyncio.create_task(announce())]
        for door, sock in doors:
            sock.settimeout(0)
            sock.listen(BACKLOG)
            accepting = accept(sock, door, supervisor.give, supervisor.one_serving)
            tasks.append(asyncio.create_task(accepting))
        try:
            yield RunningInference(address, ready, http_address)
        finally:
            ready.clear()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _, sock in doors:
                sock.close()  # Who connects from now on is refused, not left waiting.


@contextmanager
def _bound(listen: str) -> Iterator[tuple[list[socket.socket], str]]:
    """Hold the sockets of an address for the length of the block, and what to dial."""
    is_unix = listen.startswith("unix:")
    before = os.umask(0o177) if is_unix else 0  # The socket is this user's alone from the start.
    try:
        bound = bind(listen, reuse_port=False)
    finally:
        if is_unix:
            os.umask(before)
    try:
        yield bound.sockets, listen if is_unix else f"{listen.rpartition(':')[0]}:{bound.port}"
    finally:
        for sock in bound.sockets:
            sock.close()
        if bound.path is not None:
            bound.path.unlink(missing_ok=True)
