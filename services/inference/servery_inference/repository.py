"""What this process serves: finds the version a request means, and carries out rollouts."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from servery.errors.v1 import error_reason_pb2 as reasons
from servery_inference.engine import LoadFailedError
from servery_inference.loading import Bundle, Loader
from servery_inference.request import InferenceRequestInvalidError, shown
from servery_inference.rollout import State, next_step
from servery_inference.servable import Servable
from servery_rpc.errors import ServeryError
from servery_rpc.names import PRODUCTION

_LEADING_INTEGER: Final = re.compile(r"\s*([+-]?[0-9]+)", re.ASCII)
_MAX_DIGITS: Final = 20
_MAX_VERSION: Final = (1 << 63) - 1

Fetch = Callable[[int], Awaitable[Bundle]]
"""Brings the files of a version of one model; raises `LoadFailedError` if there is no hope."""

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


@dataclass(slots=True)
class _Version:
    state: State
    reason: str = ""
    servable: Servable | None = None
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Model:
    name: str
    fetch: Fetch
    targets: Mapping[str, int] = field(default_factory=dict)
    serving: Mapping[str, int] = field(default_factory=dict)
    versions: dict[int, _Version] = field(default_factory=dict)


class Repository:
    """All models by their names on the wire. For one event loop.

    Use it as a context manager: on leaving, loads that run are abandoned.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._models: dict[str, _Model] = {}
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
    ) -> None:
        """Say what to serve of `model` from now on, and begin to make it so.

        A version that failed is tried again when an alias newly points at it.

        Args:
            model: Name on the wire.
            targets: Version that each alias shall mean; empty to serve nothing.
            fetch: Brings its files.
            serving: What each alias meant when this process ran before, to fall back on.
        """
        line = self._models.setdefault(model, _Model(model, fetch, serving=serving or {}))
        for alias, target in targets.items():
            version = line.versions.get(target)
            if version and version.state is State.FAILED and line.targets.get(alias) != target:
                del line.versions[target]
        line.fetch, line.targets = fetch, dict(targets)
        self._advance(line)

    def retry(self, model: str, number: int) -> None:
        """Try a version again that failed, if it is still wanted."""
        line = self._models[model]
        version = line.versions.get(number)
        if version and version.state is State.FAILED:
            del line.versions[number]
            self._advance(line)

    async def settled(self) -> None:
        """Return when nothing is being loaded."""
        while loading := [
            version.task
            for model in self._models.values()
            for version in model.versions.values()
            if version.state is State.LOADING and version.task
        ]:
            await asyncio.wait(loading)

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
        if number is None:
            found = line.versions.get(line.serving.get(PRODUCTION, 0))
            if found is None or found.servable is None or found.state is not State.READY:
                raise ModelNotServedError(model, version, "has no available versions")
            return found.servable
        found = line.versions.get(number)
        if found is None or found.servable is None or found.state is not State.READY:
            raise ModelNotServedError(model, version, f"version {number} is not found")
        return found.servable

    def ready_versions(self, model: str) -> list[int]:
        """Return the numbers of the versions of `model` that answer, rising."""
        line = self._models.get(model)
        versions = line.versions if line else {}
        return sorted(n for n, version in versions.items() if version.state is State.READY)

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

    def _advance(self, model: _Model) -> None:
        step = next_step(
            model.targets,
            model.serving,
            {number: version.state for number, version in model.versions.items()},
        )
        for alias, number in step.serving.items():
            if model.serving.get(alias) != number and number in model.versions:
                log.info("model %s: %s is now version %s", model.name, alias, number)
        model.serving = step.serving
        for number in step.load:
            version = model.versions[number] = _Version(State.LOADING)
            version.task = self._start(self._load(model, number, version))
        for number in step.unload:
            self._unload(model, number)
        for listener in self._listeners:
            listener()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _load(self, model: _Model, number: int, version: _Version) -> None:
        try:
            bundle = await model.fetch(number)
            version.servable = await self._loader.load(model.name, number, bundle)
            version.state = State.READY
            log.info("model %s version %s is ready", model.name, number)
        except LoadFailedError as error:
            version.state, version.reason = State.FAILED, str(error)
            log.error("model %s version %s is not served: %s", model.name, number, error)
        except Exception:
            version.state, version.reason = State.FAILED, "internal error; see the server's log"
            log.exception("model %s version %s cannot be loaded", model.name, number)
        self._advance(model)

    def _unload(self, model: _Model, number: int) -> None:
        version = model.versions[number]
        if version.servable:
            version.state = State.UNLOADING
            version.task = self._start(self._drain(model, number, version, version.servable))
            return
        if version.task:
            version.task.cancel()
        version.state, version.reason = State.UNLOADED, "unloaded"

    async def _drain(
        self, model: _Model, number: int, version: _Version, servable: Servable
    ) -> None:
        await servable.drained()
        version.servable = None
        version.state, version.reason = State.UNLOADED, "unloaded"
        log.info("model %s version %s is unloaded", model.name, number)
        self._advance(model)


def parse_version(text: str, model: str) -> int | None:
    """Read the version of a request as clients of the protocol expect: leading digits count.

    Returns:
        A number from 1 up; None if `text` is empty.

    Raises:
        InferenceRequestInvalidError: `text` does not begin with an integer above 0.
    """
    if not text:
        return None
    match = _LEADING_INTEGER.match(text)
    number = int(match[1]) if match and len(match[1]) <= _MAX_DIGITS else None
    details = "" if number is not None and number <= 0 else " (details: stol)"
    if number is None or not 0 < number <= _MAX_VERSION:
        raise InferenceRequestInvalidError(
            f"failed to get model version from specified version string '{shown(text)}'{details},"
            " version should be an integral value > 0",
            model,
        )
    return number
