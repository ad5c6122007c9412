"""The xDS server: sends the newest snapshot to every Envoy and knows what each made of it.

Aggregated discovery, state of the world. What one Envoy asked for, was sent and accepted is in
`conversation`; here are the streams, and the wait for their answers.
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from servery_gateway import xds_pool
from servery_gateway.conversation import Conversation, Offer
from servery_gateway.snapshot import CLUSTER, ConfigurationRejectedError, Encoder, Snapshot
from servery_rpc.errors import DependencyUnavailableError
from servery_rpc.server import Service

log = logging.getLogger(__name__)

SERVICE: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_REQUEST: Final = "envoy.service.discovery.v3.DiscoveryRequest"


class AdsServer:
    """Sends snapshots to the connected Envoys. Belongs to one event loop.

    Args:
        retry_s: After how many seconds an Envoy is offered again what it refused and what is still
            in force: a port that was in use may be free by then.
    """

    def __init__(self, retry_s: float = 2.0) -> None:
        self._retry_s = retry_s
        self._encoder = Encoder()
        self._offer: Offer | None = None
        self._streams: dict[Conversation, asyncio.Event] = {}
        self._progress = asyncio.Condition()
        self._publishing = asyncio.Lock()
        self._closed = False

    @property
    def service(self) -> Service:
        """What to serve."""
        handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            self._stream,
            request_deserializer=xds_pool.message_class(_REQUEST).FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )
        methods = {"StreamAggregatedResources": handler}
        generic = grpc.method_handlers_generic_handler(SERVICE, methods)
        return Service(SERVICE, lambda server: server.add_generic_rpc_handlers([generic]))

    async def publish(self, snapshot: Snapshot, timeout_s: float = 5.0) -> None:
        """Put `snapshot` in force; return once every connected Envoy has accepted it.

        With none connected it returns at once; who connects later gets the newest snapshot first.

        Raises:
            ConfigurationRejectedError: An Envoy refused it. The snapshot before is in force again,
                if there was one.
            DependencyUnavailableError: An Envoy did not answer in time. The snapshot stays in
                force: the Envoy gets it as soon as it answers again.
        """
        async with self._publishing:
            encoded = await asyncio.to_thread(self._encoder.encode, snapshot)
            versions = snapshot.versions
            before, self._offer = self._offer, Offer(versions, encoded)
            changed = [k for k, v in versions.items() if not before or before.versions[k] != v]
            # While a cluster warms, Envoy holds back what it makes of them all: only who changed
            # them waits for that.
            awaited = {k: v for k, v in versions.items() if k in changed or k != CLUSTER}
            self._wake()
            try:
                async with asyncio.timeout(timeout_s), self._progress:
                    await self._progress.wait_for(
                        lambda: all(stream.settled(awaited) for stream in self._streams)
                    )
            except TimeoutError:
                raise DependencyUnavailableError("data plane") from None
            problems = [p for stream in self._streams if (p := stream.problem(versions, changed))]
            if problems:
                if before is not None:
                    self._offer = before
                    self._wake()
                raise ConfigurationRejectedError(problems[0])

    def close(self) -> None:
        """End every stream, so that a server which drains need not wait for them."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        for wake in self._streams.values():
            wake.set()

    async def _stream(
        self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        """Talk to one Envoy until it hangs up."""
        stream, wake = Conversation(), asyncio.Event()
        self._streams[stream] = wake
        reader = asyncio.create_task(self._read(requests, stream, wake))
        try:
            while not (self._closed or reader.done()):
                while self._offer and (response := stream.next_response(self._offer)):
                    yield response
                await wake.wait()
                wake.clear()
        finally:
            del self._streams[stream]
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await reader
            await self._note_progress()  # One less to wait for.

    async def _read(
        self, requests: AsyncIterator[Any], stream: Conversation, wake: asyncio.Event
    ) -> None:
        try:
            async for request in requests:
                if refused := stream.receive(request):
                    log.error("Envoy refused %s: %s", request.type_url, refused)
                    self._offer_again_later(request.type_url, stream, wake)
                await self._note_progress()
                wake.set()
        finally:
            wake.set()

    def _offer_again_later(self, kind: str, stream: Conversation, wake: asyncio.Event) -> None:
        def offer_again() -> None:
            stream.offer_again(kind)
            wake.set()

        asyncio.get_running_loop().call_later(self._retry_s, offer_again)

    async def _note_progress(self) -> None:
        async with self._progress:
            self._progress.notify_all()
