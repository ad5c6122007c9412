"""One worker: a process that answers requests, and leaves what concerns all to its parent.

Started by `WorkerProcess`, with the descriptors of two sockets and the settings of the server.
"""

import asyncio
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Final

import uvloop
from prometheus_client import REGISTRY

import servery_h2
from servery_inference.control_servicer import RepositoryControl
from servery_inference.diagnosis_servicer import DiagnosisServicer
from servery_inference.doors import Doors
from servery_inference.heap import keep_freed_blocks
from servery_inference.log_switch import LogSwitch
from servery_inference.metrics import RepositoryCollector, exported
from servery_inference.parts import known_graphs, loader_of
from servery_inference.rpcs import Handlers
from servery_inference.settings import InferenceSettings
from servery_inference.shared_memory import SharedMemory
from servery_inference.shared_memory_servicer import SharedMemoryServicer
from servery_inference.trace_settings import TraceSettings
from servery_inference.transport import FastTransport, tls_files
from servery_inference.workers.channel import EMPTY, Channel, Handle, Parcel, PeerGoneError
from servery_inference.workers.follower import Follower, ParentsSandbox
from servery_inference.workers.merged_metrics import snapshot
from servery_inference.workers.passing import GRPC, HTTP, Adopt, Receiver
from servery_inference.workers.relay import answered, relayed
from servery_rpc.process import log_to_stderr, stop_requested, stop_with_parent
from servery_rpc.server import exporting
from servery_rpc.settings import ServerSettings, load

_REPORT_S: Final = 0.5

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Answer requests until the parent ends, or says so by SIGTERM; return the exit status."""
    keep_freed_blocks()
    stop_with_parent(unasked=True)
    control, connections, *flags = argv
    settings = load(InferenceSettings, "SERVERY_INFERENCE", flags, {})
    log_to_stderr(settings.log_level)
    try:
        with (
            socket.socket(fileno=int(control)) as control_socket,
            socket.socket(fileno=int(connections)) as connections_socket,
        ):
            uvloop.run(run(settings, control_socket, connections_socket))
    except (OSError, RuntimeError) as error:
        log.critical("a worker cannot run: %s", error)
        return 1
    return 0


async def run(
    settings: InferenceSettings, control: socket.socket, connections: socket.socket
) -> None:
    """Answer requests until asked to stop, then drain."""
    stopping = asyncio.create_task(stop_requested())
    async with AsyncExitStack() as stack:
        telemetry = await stack.enter_async_context(exporting(settings))
        traces = TraceSettings(is_exported=telemetry is not None)
        handlers: dict[str, Handle] = {}  # Filled below, before the parent is told to begin.
        channel = await stack.enter_async_context(Channel.over(control, handlers))
        sandbox = ParentsSandbox(channel) if settings.admission else None
        graphs = await known_graphs(settings)
        loader = stack.enter_context(loader_of(settings, sandbox, traces, telemetry, graphs))
        follower = await stack.enter_async_context(Follower(loader))
        stack.enter_context(exported(REGISTRY, RepositoryCollector(follower)))
        switch = stack.enter_context(LogSwitch.installed())
        memory = stack.enter_context(SharedMemory.open()) if settings.shared_memory else None
        own = {
            **RepositoryControl(follower, None).handlers(),
            **SharedMemoryServicer(memory).handlers(),
            **DiagnosisServicer(follower, switch, traces).handlers(),
        }
        others = {**own, **relayed(channel)}
        transport = AdoptingTransport()
        doors = await stack.enter_async_context(
            Doors.open(settings, follower, memory, others, transport, telemetry)
        )
        adopts: dict[bytes, Adopt] = {GRPC: transport.adopt}
        counts = [lambda: transport.num_connections]
        if settings.http_address is not None:
            from servery_inference.http_server import adopting_http  # Only here, for its memory.

            http = await stack.enter_async_context(
                adopting_http(doors.http_app(), settings.drain_s)
            )
            adopts[HTTP] = http.adopt
            counts.append(lambda: http.num_connections)
        own["ModelStatistics"] = doors.servicer.ModelStatistics
        handlers |= {**follower.handlers(), **_answers(doors, own)}
        receiver = Receiver(connections, adopts)
        receiver.start()
        reporting = asyncio.create_task(_report(channel, receiver, counts))
        gone = asyncio.create_task(channel.gone.wait())
        try:
            await channel.call("hello")
            await asyncio.wait({stopping, gone}, return_when=asyncio.FIRST_COMPLETED)
            await channel.call("leaving")
        except PeerGoneError:
            log.error("the parent process is gone")
        finally:
            doors.ready.clear()
            reporting.cancel()
            await receiver.stop()


def _answers(doors: Doors, own: Handlers) -> dict[str, Handle]:
    async def rpc(parcel: Parcel) -> Parcel:
        return await answered(own, parcel)

    async def ready(_: Parcel) -> Parcel:
        await doors.announce_ready()
        return EMPTY

    async def metrics(_: Parcel) -> Parcel:
        return Parcel(body=await asyncio.to_thread(snapshot, REGISTRY))

    return {"rpc": rpc, "ready": ready, "metrics": metrics}


async def _report(
    channel: Channel, receiver: Receiver, counts: Sequence[Callable[[], int]]
) -> None:
    """Tell the parent how many of the connections that it passed are over."""
    told = 0
    while True:
        await asyncio.sleep(_REPORT_S)
        closed = receiver.num_adopted - sum(count() for count in counts)
        if closed != told:
            channel.send("closed", {"count": closed})
            told = closed


class AdoptingTransport(FastTransport):
    """Calls over `servery_h2`, on connections that the parent accepts."""

    def bind(self, server: servery_h2.Server, settings: ServerSettings) -> int:
        """See `Transport`; listens nowhere."""
        self._server = server
        self.adopt = server.add_adopted_port(tls_files(settings))
        return 0

    @property
    def num_connections(self) -> int:
        """Connections that are open."""
        return self._server.num_connections


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
