"""The repository of a worker: it serves what the parent of all workers decides."""

import asyncio
from pathlib import Path

from servery_inference.bundle import Bundle
from servery_inference.engine import LoadFailedError
from servery_inference.loading import Loader
from servery_inference.model_line import ModelLine, Version
from servery_inference.repository import Repository
from servery_inference.rollout import State
from servery_inference.sandbox import Sandbox
from servery_inference.servable import Servable
from servery_inference.workers.channel import EMPTY, Channel, Handle, Parcel
from servery_inference.workers.orders import Loaded, Order


class ParentsSandbox(Sandbox):
    """That of the parent, which opens a graph once for all workers."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def admit(self, graph: Path) -> int:
        """See `Sandbox.admit`."""
        answer = await self._channel.call("admit", {"graph": str(graph)})
        grown_bytes: int = answer.fields["grown_bytes"]
        return grown_bytes


class Follower(Repository):
    """Loads, serves and forgets versions as it is told. For one event loop."""

    def __init__(self, loader: Loader) -> None:
        super().__init__(loader)
        self._loads: dict[int, asyncio.Task[Servable]] = {}

    def handlers(self) -> dict[str, Handle]:
        """Return what the parent may ask for, by method."""
        return {"load": self.load, "serve": self.serve, "drop": self.forget}

    async def load(self, parcel: Parcel) -> Parcel:
        """Load a version, which does not answer yet."""
        order = Order.from_parcel(parcel)
        work = self._loader.load(order.model, order.version, order.bundle, self.lease)
        loading = self._loads[order.number] = asyncio.create_task(work)
        await asyncio.wait([loading])
        if loading.cancelled():
            raise LoadFailedError("it is not wanted any more")
        servable = loading.result()
        return Loaded(servable.config, servable.load_s).to_parcel()

    async def serve(self, parcel: Parcel) -> Parcel:
        """Let requests find exactly these versions of some models, at once."""
        for name, told in parcel.fields.items():
            line = self._models.setdefault(name, ModelLine(name, _nothing))
            line.current = told["current"]
            line.versions = {
                int(version): Version(State.READY, servable=self._loads[number].result())
                for version, number in told["loads"].items()
            }
        for listener in self._listeners:
            listener()
        return EMPTY

    async def forget(self, parcel: Parcel) -> Parcel:
        """Release a version once its requests are answered."""
        loading = self._loads.pop(parcel.fields["number"], None)
        if loading is None:
            return EMPTY
        loading.cancel()
        await asyncio.wait([loading])
        if not loading.cancelled() and not loading.exception():
            await self._retire(loading.result())
        return EMPTY


async def _nothing(_: int) -> Bundle:
    raise AssertionError("a worker looks for no files")
