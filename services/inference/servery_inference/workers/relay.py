"""Calls that concern the whole server, whichever worker they came to."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from google.protobuf import message_factory
from google.protobuf.message import Message

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference.access import Context
from servery_inference.rpcs import METHODS, Handlers
from servery_inference.workers.channel import Channel, Parcel, PeerGoneError
from servery_inference.workers.process import WorkerProcess
from servery_inference.workers.statistics_sum import summed
from servery_inference.workers.supervisor import Supervisor
from servery_rpc.errors import ServeryError

DECIDED: Final = ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload")
"""What the parent answers from what it has decided itself."""

KEPT: Final = (
    "TraceSetting",
    "LogSettings",
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
)
"""What the parent keeps, and tells every worker."""

SUMMED: Final = "ModelStatistics"
"""What each worker knows a part of."""

_REGION: Final = "region"

log = logging.getLogger(__name__)


class RelayedContext:
    """A call that came to another process."""

    def __init__(self, metadata: Sequence[Sequence[str]]) -> None:
        self._metadata = [(key, value) for key, value in metadata]

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """Return what came with the call, as text."""
        return self._metadata

    def set_trailing_metadata(self, trailing_metadata: Any, /) -> None:
        """Do nothing: none of these calls has any."""

    def time_remaining(self) -> float | None:
        """Return None: whoever took the call watches its time."""
        return None


def relayed(channel: Channel) -> Handlers:
    """Return, for a worker, the methods that its parent answers."""
    return {name: _asking(channel, name) for name in (*DECIDED, *KEPT, SUMMED)}


def _asking(channel: Channel, name: str) -> Callable[[Message, Context], Awaitable[Message]]:
    async def ask(request: Message, context: Context) -> Message:
        # All of it: what tells who calls must not get lost.
        pairs = [(key, str(value)) for key, value in context.invocation_metadata() or ()]
        fields = {"method": name, "metadata": pairs}
        answer = await channel.call("rpc", fields, request.SerializeToString())
        return _response(name, answer.body)

    return ask


async def answered(handlers: Handlers, parcel: Parcel) -> Parcel:
    """Answer a relayed call by the `handlers` of this process."""
    context = RelayedContext(parcel.fields["metadata"])
    response: Message = await handlers[parcel.fields["method"]](_request(parcel), context)
    return Parcel(body=response.SerializeToString())


class Relay:
    """Answers, for the parent, the calls that workers relay. For one event loop.

    Args:
        handlers: What answers them here.
        supervisor: The workers.
        settle: Waits until the workers do what has been decided.
    """

    def __init__(
        self, handlers: Handlers, supervisor: Supervisor, settle: Callable[[], Awaitable[None]]
    ) -> None:
        self._handlers = handlers
        self._supervisor = supervisor
        self._settle = settle
        self._kept: dict[tuple[str, ...], Parcel] = {}
        self._turn = asyncio.Lock()

    async def answer(self, parcel: Parcel) -> Parcel:
        """Answer one call."""
        name = parcel.fields["method"]
        if name == SUMMED:
            parts = await self._asked(parcel)
            statistics = [pb.ModelStatisticsResponse.FromString(part.body) for part in parts]
            return Parcel(body=summed(statistics).SerializeToString())
        if name in KEPT:
            async with self._turn:
                return await self._keep(parcel)
        answer = await answered(self._handlers, parcel)
        await self._settle()
        return answer

    async def repeat(self, worker: WorkerProcess) -> None:
        """Tell a worker that began what the others were told; it serves from then on."""
        async with self._turn:
            for parcel in self._kept.values():
                try:
                    await worker.channel.call("rpc", parcel.fields, parcel.body)
                except ServeryError as error:
                    log.warning("worker %s does without a setting: %s", worker.place, error)
            worker.is_serving = True

    async def _keep(self, parcel: Parcel) -> Parcel:
        name, request = parcel.fields["method"], _request(parcel)
        answer = await answered(self._handlers, parcel)  # Refuses what any worker would.
        match request:
            case pb.TraceSettingRequest() | pb.LogSettingsRequest() if request.settings:
                model = getattr(request, "model_name", "")
                self._remember((name, model, *sorted(request.settings)), parcel)
            case pb.SystemSharedMemoryRegisterRequest():
                self._remember((_REGION, request.name), parcel)
            case pb.SystemSharedMemoryUnregisterRequest():
                for key in [key for key in self._kept if key[0] == _REGION]:
                    if request.name in ("", key[1]):
                        del self._kept[key]
            case _:
                return answer
        try:
            await self._everywhere(parcel)
        except ServeryError:
            if isinstance(request, pb.SystemSharedMemoryRegisterRequest):
                undo = pb.SystemSharedMemoryUnregisterRequest(name=request.name)
                fields = {**parcel.fields, "method": "SystemSharedMemoryUnregister"}
                await self._keep(Parcel(fields, undo.SerializeToString()))
            raise
        return answer

    def _remember(self, key: tuple[str, ...], parcel: Parcel) -> None:
        self._kept.pop(key, None)  # The newest is the last.
        self._kept[key] = parcel

    async def _everywhere(self, parcel: Parcel) -> None:
        for result in await self._results(parcel):
            if isinstance(result, BaseException):
                raise result

    async def _asked(self, parcel: Parcel) -> list[Parcel]:
        results = await self._results(parcel)
        answers = [result for result in results if isinstance(result, Parcel)]
        for result in results:
            if isinstance(result, BaseException) and not answers:
                raise result
        return answers

    async def _results(self, parcel: Parcel) -> list[Parcel | BaseException]:
        """What every worker that still runs says to a call."""
        calls = [
            worker.channel.call("rpc", parcel.fields, parcel.body)
            for worker in self._supervisor.serving
        ]
        results = await asyncio.gather(*calls, return_exceptions=True)
        return [result for result in results if not isinstance(result, PeerGoneError)]


def _request(parcel: Parcel) -> Message:
    kind = METHODS[parcel.fields["method"]].input_type
    return message_factory.GetMessageClass(kind).FromString(parcel.body)


def _response(name: str, body: bytes) -> Message:
    return message_factory.GetMessageClass(METHODS[name].output_type).FromString(body)
