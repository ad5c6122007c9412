"""Loads versions in all workers, so that one repository decides what all of them serve.

A version is loaded when every worker has loaded it. Then, not before, all are told to serve it, in
one message each; so they serve the same, as far apart as two messages are.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from servery.inference.v1.model_config_pb2 import ModelConfig
from servery_inference.bundle import Bundle
from servery_inference.engine import LoadFailedError
from servery_inference.ensemble_members import Lease
from servery_inference.layout import stamp
from servery_inference.request import Array, Terms
from servery_inference.sandbox import Sandbox
from servery_inference.servable import Servable
from servery_inference.workers.channel import Parcel, PeerGoneError
from servery_inference.workers.orders import Loaded, Order
from servery_inference.workers.process import WorkerProcess
from servery_inference.workers.supervisor import CannotFollowError, Supervisor

_ATTEMPTS: Final = 2
"""A process that dies while it loads may have been killed; if it dies again, the model did it."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Held:
    """An order that workers must have carried out to serve."""

    order: Order
    stamp: Hashable
    """Tells the files from what they are later."""

    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it is known whether the version is loaded."""


class SharedServable(Servable):
    """A version that the workers have; here it answers nothing."""

    def __init__(
        self, order: Order, config: ModelConfig, drain: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(order.model, order.version, config, {}, lambda _: _Elsewhere())
        self.number = order.number
        self._drain = drain

    async def drained(self) -> None:
        """Return when the workers have forgotten it; none must be told to serve it any more."""
        await self._drain()


class SharedLoader:
    """The loader of a repository whose versions are in the workers. For one event loop.

    Args:
        supervisor: The workers.
        sandbox: Where graphs are opened first that nobody vouches for; None to trust them.
    """

    def __init__(self, supervisor: Supervisor, sandbox: Sandbox | None) -> None:
        self._supervisor = supervisor
        self._sandbox = sandbox
        self._numbers = itertools.count(1)
        self._held: dict[int, _Held] = {}
        self._verdicts: dict[tuple[Path, Hashable], asyncio.Task[int]] = {}

    async def quietly(self, work: Callable[[], T]) -> T:
        """Run blocking `work` on another thread."""
        return await asyncio.to_thread(work)

    async def load(self, model: str, version: int, bundle: Bundle, lease: Lease) -> Servable:
        """Load a version in every worker; see `Loader.load`."""
        if bundle.config.message.HasField("sequence_batching"):
            raise LoadFailedError(
                "requests of a sequence must come to one process, and there are several: start the"
                " server with --workers 1, or serve the model by another one"
            )
        order = Order(next(self._numbers), model, version, bundle)
        held = _Held(order, await asyncio.to_thread(stamp, bundle.folder))
        self._held[order.number] = held
        try:
            loaded = await self._everywhere(order)
        except BaseException:
            await self._drop(order.number)
            raise
        finally:
            held.settled.set()
        servable = SharedServable(order, loaded.config, lambda: self._drop(order.number))
        servable.load_s = loaded.load_s
        return servable

    def release(self, servable: Servable) -> None:
        """Do nothing: once it is drained, the workers have released it."""

    async def admit(self, parcel: Parcel) -> Parcel:
        """Answer a worker that wants to open a graph; what several ask is found out once."""
        if self._sandbox is None:
            return Parcel({"grown_bytes": 0})
        graph = Path(parcel.fields["graph"])
        key = graph, await asyncio.to_thread(stamp, graph.parent)
        if key not in self._verdicts:
            self._verdicts[key] = asyncio.create_task(self._sandbox.admit(graph))
        return Parcel({"grown_bytes": await asyncio.shield(self._verdicts[key])})

    async def catch_up(self, worker: WorkerProcess) -> None:
        """Let a worker load what the others have loaded.

        Raises:
            CannotFollowError: It cannot.
            PeerGoneError: It ended.
        """
        done: set[int] = set()
        while missing := [held for number, held in self._held.items() if number not in done]:
            for held in missing:
                order = held.order
                done.add(order.number)
                if await asyncio.to_thread(stamp, order.bundle.folder) != held.stamp:
                    problem = "its files are not what they were"
                else:
                    problem = await _problem(worker, order)
                await held.settled.wait()
                if problem and order.number in self._held:
                    raise CannotFollowError(
                        f"model {order.model} version {order.version}: {problem}"
                    )

    async def _everywhere(self, order: Order) -> Loaded:
        for _ in range(_ATTEMPTS):
            workers = await self._supervisor.some()
            loads = [worker.load(order) for worker in workers]
            results = await asyncio.gather(*loads, return_exceptions=True)
            failures = [result for result in results if isinstance(result, BaseException)]
            for failure in failures:
                if not isinstance(failure, PeerGoneError):
                    raise failure
            if not failures:
                return next(result for result in results if isinstance(result, Loaded))
        raise LoadFailedError("the worker process ended that loaded it; see the server's log")

    async def _drop(self, number: int) -> None:
        self._held.pop(number, None)
        folders = {held.order.bundle.folder for held in self._held.values()}
        for key in [key for key in self._verdicts if key[0].parent not in folders]:
            self._verdicts.pop(key)
        await asyncio.gather(*(worker.drop(number) for worker in self._supervisor.workers))


class _Elsewhere:
    async def run(
        self,
        feed: Mapping[str, Array],
        names: Sequence[str],
        rows: int,
        size: int,
        terms: Terms,
        deadline: float | None,
    ) -> NoReturn:
        raise AssertionError("the parent of workers answers no requests")


async def _problem(worker: WorkerProcess, order: Order) -> str:
    try:
        await worker.load(order)
    except LoadFailedError as error:
        return str(error)
    return ""
