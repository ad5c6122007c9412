"""What this process serves: finds the version a request means, and carries out rollouts."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from servery.errors.v1 import error_reason_pb2 as reasons
from servery_inference.bundle import Bundle
from servery_inference.engine import LoadFailedError
from servery_inference.ensemble_members import Lease, Members
from servery_inference.model_line import Fetch, ModelLine, Version
from servery_inference.request import shown
from servery_inference.rollout import State, next_step
from servery_inference.servable import Servable
from servery_inference.version_text import parse_version
from servery_rpc.errors import ServeryError

T = TypeVar("T")
log = logging.getLogger(__name__)


class ModelNotServedError(ServeryError):
    """No version that the request could mean is ready."""

    reason = reasons.ERROR_REASON_MODEL_NOT_SERVED

    def __init__(self, model: str, version: str, problem: str) -> None:
        super().__init__(
            f"Request for unknown model: '{shown(model)}' {problem}",
            model=shown(model),
            version=shown(version),
        )


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of the repository index."""

    model: str

    version: int | None
    """None for a model of which no version was ever wanted; then the rest is empty."""

    state: str = ""
    reason: str = ""


class ServableLoader(Protocol):
    """Makes servables out of bundles; `Loader` is one."""

    async def load(self, model: str, version: int, bundle: Bundle, lease: Lease) -> Servable:
        """See `Loader.load`."""

    def release(self, servable: Servable) -> None:
        """See `Loader.release`."""

    async def quietly(self, work: Callable[[], T]) -> T:
        """See `Loader.quietly`."""


class Repository:
    """All models by their names on the wire. For one event loop.

    Use it as a context manager: on leaving, loads that run are abandoned.
    """

    def __init__(self, loader: ServableLoader) -> None:
        self._loader = loader
        self._models: dict[str, ModelLine] = {}
        self._listeners: list[Callable[[], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Abandon what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every change of state or alias."""
        self._listeners.append(listener)

    def want(
        self,
        model: str,
        targets: Mapping[str, int],
        fetch: Fetch,
        serving: Mapping[str, int] | None = None,
        *,
        revisions: Mapping[int, Hashable] | None = None,
        implicit_latest: bool = False,
    ) -> None:
        """Say what to serve of `model` from now on, and begin to make it so.

        A version that failed is tried again when an alias newly points at it, or with another
        revision. One that serves is replaced when its revision is another: the old one answers
        until the new one is ready, and goes on to answer if that never happens.

        Args:
            model: Name on the wire.
            targets: Version that each alias shall mean; empty to serve nothing.
            fetch: Brings its files.
            serving: What each alias meant when this process ran before, to fall back on.
            revisions: Tells the contents of a version from what they were before.
            implicit_latest: A request without a version means the newest one that is ready, not
                the alias `production`.
        """
        line = self._models.setdefault(model, ModelLine(model, fetch, serving=serving or {}))
        for alias, target in targets.items():
            version = line.versions.get(target)
            if version and version.state is State.FAILED and line.targets.get(alias) != target:
                del line.versions[target]
        line.fetch, line.targets = fetch, dict(targets)
        line.revisions, line.implicit_latest = dict(revisions or {}), implicit_latest
        self._renew(line)
        self._advance(line)

    def _renew(self, model: ModelLine) -> None:
        for number, version in list(model.versions.items()):
            revision = model.revisions.get(number, version.revision)
            if revision == version.revision:
                continue
            if version.state is State.FAILED:
                del model.versions[number]
            elif version.state is State.LOADING:
                if version.task:
                    version.task.cancel()
                del model.versions[number]
            elif version.state is State.READY:
                if version.task:
                    version.task.cancel()
                version.revision = revision
                version.task = self._start(self._replace(model, number, version))

    def drop(self, model: str) -> None:
        """Serve nothing of `model` from now on, if it was ever wanted."""
        line = self._models.get(model)
        if line is not None:
            line.targets = {}
            self._advance(line)

    def models(self) -> list[str]:
        """Return the names of all models of which some version was wanted."""
        return list(self._models)

    def retry(self, model: str, number: int) -> None:
        """Try a version again that failed to load or to be replaced, if it is still wanted."""
        line = self._models[model]
        version = line.versions.get(number)
        if version and version.state is State.FAILED:
            del line.versions[number]
            self._advance(line)
        elif version and version.state is State.READY and version.reason:
            version.task = self._start(self._replace(line, number, version))

    async def settled(self, model: str | None = None) -> None:
        """Return when nothing is being loaded: of `model`, or at all."""
        while loading := [
            version.task
            for name, line in self._models.items()
            if model in (None, name)
            for number, version in line.versions.items()
            if version.task
            and not version.task.done()
            and (version.state is not State.UNLOADING or number in line.targets.values())
        ]:
            await asyncio.wait(loading)

    def problems(self, model: str) -> dict[int, str]:
        """Return why versions of `model` that are wanted are not served as they are wanted."""
        line = self._models.get(model)
        return line.problems() if line else {}

    @contextmanager
    def lease(self, model: str, version: str) -> Iterator[Servable]:
        """Find what a request means and keep it loaded for the length of the block.

        Raises:
            ModelNotServedError: It is not there or not ready.
            InferenceRequestInvalidError: `version` is no integer above 0.
        """
        servable = self.find(model, version)
        with servable.lease():
            yield servable

    def find(self, model: str, version: str) -> Servable:
        """Find what a request means; see `lease`."""
        number = parse_version(version, model)
        line = self._models.get(model)
        if line is None:
            raise ModelNotServedError(model, version, "is not found")
        found = line.find(number or line.current)
        if found is None:
            problem = f"version {number} is not found" if number else "has no available versions"
            raise ModelNotServedError(model, version, problem)
        return found

    def ready_versions(self, model: str) -> list[int]:
        """Return the numbers of the versions of `model` that answer, rising."""
        line = self._models.get(model)
        return line.ready() if line else []

    def serving(self, model: str) -> Mapping[str, int]:
        """Return the version that each alias of `model` means now."""
        line = self._models.get(model)
        return line.serving if line else {}

    def servables(self) -> list[Servable]:
        """Return what is loaded. Safe to call from any thread."""
        return [
            version.servable
            for model in list(self._models.values())
            for version in list(model.versions.values())
            if version.servable is not None
        ]

    def lines(self) -> Iterator[tuple[str, int, Mapping[int, Servable]]]:
        """Yield of every model its name, the current version (0: none), and what answers."""
        for name, line in self._models.items():
            found = {number: line.find(number) for number in line.ready()}
            yield name, line.current, {n: servable for n, servable in found.items() if servable}

    def index(self) -> list[IndexEntry]:
        """List every version that was ever wanted, and the models of which none was."""
        entries: list[IndexEntry] = []
        for name, model in sorted(self._models.items()):
            if not model.versions:
                entries.append(IndexEntry(name, None))
            entries += [
                IndexEntry(name, number, version.state.wire, version.reason)
                for number, version in sorted(model.versions.items())
            ]
        return entries

    def _advance(self, model: ModelLine) -> None:
        step = next_step(
            model.targets,
            model.serving,
            {number: version.state for number, version in model.versions.items()},
        )
        for alias, number in step.serving.items():
            moved = model.serving.get(alias) != number and number in model.versions
            if moved and not model.implicit_latest:
                log.info("model %s: %s is now version %s", model.name, alias, number)
        model.serving = step.serving
        for number in step.load:
            version = Version(State.LOADING, model.revisions.get(number))
            model.versions[number] = version
            version.task = self._start(self._load(model, number, version))
        for number in step.unload:
            self._unload(model, number)
        model.choose_current()
        for listener in self._listeners:
            listener()
        self._follow_members()

    def _follow_members(self) -> None:
        """Serve every ensemble as long as the models that it is made of serve, and fit it."""
        for model in list(self._models.values()):
            for number, version in list(model.versions.items()):
                if version.members is None or version.state not in (State.READY, State.FAILED):
                    continue
                problem = version.members.problem()
                if version.state is State.FAILED and problem:
                    version.reason = problem
                    continue
                if version.state is State.FAILED:
                    del model.versions[number]
                elif problem:
                    self._give_up(model, number, version, problem)
                else:
                    continue
                self._advance(model)

    def _give_up(self, model: ModelLine, number: int, version: Version, problem: str) -> None:
        log.error("model %s version %s is served no more: %s", model.name, number, problem)
        version.state, version.reason = State.FAILED, problem
        if version.servable:
            self._start(self._retire(version.servable))
            version.servable = None

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _load(self, model: ModelLine, number: int, version: Version) -> None:
        try:
            version.servable = await self._made(model, number, version)
            version.state = State.READY
            log.info("model %s version %s is ready", model.name, number)
        except LoadFailedError as error:
            version.state, version.reason = State.FAILED, str(error)
            # An ensemble may only wait for its members.
            level = logging.WARNING if version.members else logging.ERROR
            log.log(level, "model %s version %s is not served: %s", model.name, number, error)
        self._advance(model)

    async def _replace(self, model: ModelLine, number: int, version: Version) -> None:
        try:
            made = await self._made(model, number, version)
        except LoadFailedError as error:
            version.reason = f"not reloaded: {error}"
            log.error("model %s version %s is not reloaded: %s", model.name, number, error)
        else:
            if version.servable:
                self._start(self._retire(version.servable))
            version.servable, version.reason = made, ""
            log.info("model %s version %s is reloaded", model.name, number)
        self._advance(model)

    async def _made(self, model: ModelLine, number: int, version: Version) -> Servable:
        try:
            bundle = await model.fetch(number)
            if bundle.config.is_ensemble:
                version.members = Members.of(model.name, bundle.config.message, self.lease)
                if problem := version.members.problem():
                    raise LoadFailedError(problem)
            return await self._loader.load(model.name, number, bundle, self.lease)
        except LoadFailedError:
            raise
        except Exception:
            log.exception("model %s version %s cannot be loaded", model.name, number)
            raise LoadFailedError("internal error; see the server's log") from None

    async def _retire(self, servable: Servable) -> None:
        await servable.drained()
        self._loader.release(servable)

    def _unload(self, model: ModelLine, number: int) -> None:
        version = model.versions[number]
        if version.servable:
            if version.task:
                version.task.cancel()
            version.state = State.UNLOADING
            version.task = self._start(self._drain(model, number, version, version.servable))
            return
        if version.task:
            version.task.cancel()
        version.state, version.reason = State.UNLOADED, "unloaded"

    async def _drain(
        self, model: ModelLine, number: int, version: Version, servable: Servable
    ) -> None:
        await self._retire(servable)
        version.servable = None
        version.state, version.reason = State.UNLOADED, "unloaded"
        log.info("model %s version %s is unloaded", model.name, number)
        self._advance(model)
