"""Models from the registry: follows its announcements, brings the files, remembers.

The registry may go away at any time: what is served stays served, and a process that starts
without it serves what it served before.
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Self
from weakref import WeakValueDictionary

import grpc

from servery.registry.v1 import registry_pb2 as pb
from servery.registry.v1 import registry_pb2_grpc as pb_grpc
from servery_inference.backoff import waits
from servery_inference.bundle import Bundle
from servery_inference.cache import BundleCache, BundleFile, BundleSpec
from servery_inference.engine import LoadFailedError
from servery_inference.model_config import read_config
from servery_inference.repository import Repository, ServableLoader
from servery_inference.world import Remembered, World
from servery_rpc.errors import FieldInvalidError
from servery_rpc.names import ModelName, VersionName

_ALL_TENANTS: Final = "tenants/-"
_ATTEMPTS: Final = 4
_RETRY_S: Final = 2.0
_HOPELESS: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
_CHANNEL_OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 20_000),  # Else a registry that vanished is watched for ever.
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

log = logging.getLogger(__name__)


class RegistrySource:
    """Keeps a repository as the registry wants it. For one event loop."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        cache: BundleCache,
        repository: Repository,
        loader: ServableLoader,
    ) -> None:
        self.informed = asyncio.Event()
        """Set once it is known what to serve: from the registry, or from before."""

        self._stub = pb_grpc.RegistryServiceStub(channel)
        self._cache = cache
        self._repository = repository
        self._loader = loader
        self._world = World()
        self._resume_token = ""
        self._changed = asyncio.Event()
        self._postponed: set[VersionName] = set()
        self._arriving: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @classmethod
    @asynccontextmanager
    async def following(
        cls, address: str, cache: BundleCache, repository: Repository, loader: ServableLoader
    ) -> AsyncIterator[Self]:
        """Follow the registry at `address` for the length of the block."""
        async with grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS) as channel:
            source = cls(channel, cache, repository, loader)
            await source._recall()
            repository.on_change(source._changed.set)
            tasks = [
                asyncio.create_task(work)
                for work in (source._follow(), source._remember(), source._retry())
            ]
            try:
                yield source
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self) -> None:
        pauses = waits()
        while True:
            try:
                async for _ in self._events():
                    pauses = waits()
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    self._resume_token = ""  # It has forgotten; begin again.
                log.warning("the registry cannot be watched: %s", error.code().name)
            except Exception:
                self._resume_token = ""
                log.exception("unhandled error while watching the registry")
            await asyncio.sleep(next(pauses))

    async def _events(self) -> AsyncIterator[None]:
        request = pb.WatchModelsRequest(parent=_ALL_TENANTS, resume_token=self._resume_token)
        snapshot = None if self._resume_token else World()
        async for response in self._stub.WatchModels(request):
            model = _taken(self._world if snapshot is None else snapshot, response)
            if response.snapshot_complete and snapshot is not None:
                models = self._world.models() | snapshot.models()
                self._world, snapshot = snapshot, None
                for each in sorted(models):
                    self._want(each)
                self.informed.set()
            elif model is not None and snapshot is None:
                self._want(model)
            self._resume_token = response.resume_token or self._resume_token
            yield

    def _want(self, model: ModelName) -> None:
        self._repository.want(
            model.wire_name, self._world.targets(model), partial(self._bundle, model)
        )

    async def _bundle(self, model: ModelName, number: int) -> Bundle:
        spec = self._world.versions.get(VersionName(model, number))
        if spec is None:
            raise LoadFailedError("the registry does not describe the version")
        # Versions may be equal: their bundle arrives once.
        arriving = self._arriving.setdefault(spec.digest, asyncio.Lock())
        async with arriving:
            if not await self._loader.quietly(partial(self._cache.holds, spec)):
                await self._bring(spec)
        folder = self._cache.folder(spec)
        return Bundle(folder, golden_required=True, config=read_config(folder))

    async def _bring(self, spec: BundleSpec) -> None:
        try:
            await self._download(spec)
            try:
                await self._loader.quietly(partial(self._cache.admit, spec))
            except LoadFailedError:  # What was left of an earlier attempt may be the cause.
                await self._download(spec)
                await self._loader.quietly(partial(self._cache.admit, spec))
        except OSError as error:
            raise LoadFailedError(f"the bundle cannot be stored: {error.strerror}") from None

    async def _download(self, spec: BundleSpec) -> None:
        for file in spec.files:
            pauses = waits()
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    await self._read(spec, file)
                    break
                except grpc.aio.AioRpcError as error:
                    if error.code() in _HOPELESS:
                        raise LoadFailedError(
                            f"the registry refuses to send {file.path}: {error.code().name}"
                        ) from None
                    if attempt == _ATTEMPTS:
                        self._postponed.add(spec.name)
                        raise LoadFailedError(
                            f"the registry does not send {file.path} ({error.code().name}); it is"
                            " asked again soon"
                        ) from None
                await asyncio.sleep(next(pauses))

    async def _read(self, spec: BundleSpec, file: BundleFile) -> None:
        path, size = await asyncio.to_thread(self._cache.partial_file, spec, file)
        request = pb.ReadFileRequest(name=str(spec.name), path=file.path, offset_bytes=size)
        with await asyncio.to_thread(path.open, "ab") as arriving:
            if size == file.size_bytes:
                return
            async for response in self._stub.ReadFile(request):
                chunk = response.chunk
                size += len(chunk)
                if size > file.size_bytes:
                    raise LoadFailedError(
                        f"the registry sends more than the {file.size_bytes} bytes it declares for"
                        f" {file.path}"
                    )
                await asyncio.to_thread(arriving.write, chunk)

    async def _recall(self) -> None:
        state = await asyncio.to_thread(self._cache.read_state)
        remembered = Remembered.from_json(state)
        self._world = remembered.world
        for model in sorted(self._world.models()):
            self._repository.want(
                model.wire_name,
                self._world.targets(model),
                partial(self._bundle, model),
                remembered.serving.get(model),
            )
        if self._world.aliases:
            self.informed.set()

    async def _remember(self) -> None:
        written: object = None
        while True:
            await self._changed.wait()
            self._changed.clear()
            if not self.informed.is_set():
                continue
            state = self._in_use().to_json()
            if state == written:
                continue
            try:
                await asyncio.to_thread(self._cache.write_state, state)
                await self._prune()
                written = state
            except OSError as error:
                log.error("the cache cannot be kept up to date: %s", error.strerror)

    async def _prune(self) -> None:
        here = await asyncio.to_thread(self._cache.digests)
        # No await from here to the last discard, so that nothing begins to arrive meanwhile.
        used = {spec.digest for spec in self._in_use().world.versions.values()}
        for digest in here - used - set(self._arriving):
            self._cache.discard(digest)
        await asyncio.to_thread(self._cache.empty_trash)

    def _in_use(self) -> Remembered:
        models = sorted(self._world.models())
        serving = {model: self._repository.serving(model.wire_name) for model in models}
        return Remembered.of(self._world, serving)

    async def _retry(self) -> None:
        while True:
            await asyncio.sleep(_RETRY_S)
            postponed, self._postponed = self._postponed, set()
            for name in postponed:
                self._repository.retry(name.model.wire_name, name.number)


def _taken(world: World, response: pb.WatchModelsResponse) -> ModelName | None:
    try:
        return world.apply(response)
    except FieldInvalidError as error:
        log.error("the registry announces something malformed, which is ignored: %s", error)
        return None
