"""Keeps what is served as a directory and its control mode want it. For one event loop."""

import asyncio
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Literal, Self
from weakref import WeakValueDictionary

from servery_inference.bundle import Bundle
from servery_inference.layout import FoundModel, find, graph_of, is_name, lay_out, names
from servery_inference.model_config import GivenConfig
from servery_inference.repository import Repository

ControlMode = Literal["none", "poll", "explicit"]
CONTROL_MODES: Final = ("none", "poll", "explicit")
ALL_MODELS: Final = "*"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a load request brings instead of what is in the directory."""

    config: GivenConfig | None = None

    files: Mapping[str, bytes] = field(default_factory=dict)
    """By path, such as `1/model.onnx`; if there are any, they are the whole model."""


class DirectorySource:
    """Keeps a repository as a directory and its control mode want it. For one event loop."""

    def __init__(
        self,
        root: Path,
        mode: ControlMode,
        repository: Repository,
        scratch: Path,
        refresh: Callable[[], None] | None,
    ) -> None:
        self.mode: Final = mode
        self._refresh_root = refresh
        self._refreshing = asyncio.Lock()
        self._root = root
        self._repository = repository
        self._scratch = scratch
        self._overrides: dict[str, Path] = {}
        self._loading: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @classmethod
    @asynccontextmanager
    async def serving(
        cls,
        root: Path,
        mode: ControlMode,
        load_models: Sequence[str],
        poll_s: float,
        repository: Repository,
        refresh: Callable[[], None] | None = None,
    ) -> AsyncIterator[Self]:
        """Serve for the length of the block what the mode says to begin with.

        Args:
            root: The directory.
            mode: `none`: every model, once. `poll`: every model, looked at again every `poll_s`.
                `explicit`: `load_models`, then what is asked for.
            load_models: Names of models; `*` for all.
            poll_s: Seconds between two looks.
            repository: What to fill.
            refresh: Brings the directory up to date before every look, if something else has to;
                blocks, and raises `OSError`.

        Raises:
            OSError: `root` cannot be read.
        """
        with tempfile.TemporaryDirectory(prefix="servery-models-") as scratch:
            source = cls(root, mode, repository, Path(scratch), refresh)
            polling: asyncio.Task[None] | None = None
            await source._begin(load_models)
            if mode == "poll":
                polling = asyncio.create_task(source._poll(poll_s))
            try:
                yield source
            finally:
                if polling:
                    polling.cancel()
                    await asyncio.gather(polling, return_exceptions=True)

    async def names(self) -> list[str]:
        """Return the names of all models of the directory, loaded or not."""
        try:
            return await self._names()
        except OSError as error:
            log.error("the model repository cannot be read: %s", error.strerror or error)
            return []

    async def _names(self) -> list[str]:
        if self._refresh_root is not None:
            async with self._refreshing:
                await asyncio.to_thread(self._refresh_root)
        return await asyncio.to_thread(names, self._root)

    async def load(self, model: str, overrides: Overrides | None = None) -> str:
        """Load a model, or reload it if its files or its config changed; wait for the end.

        What an ensemble is made of is loaded before it, where it does not serve.

        Returns:
            Why it, or a version of it, is not served as wanted; empty if all is well.
        """
        try:
            await self._names()
        except OSError as error:
            return f"failed to load '{model}', {error.strerror or error}"
        return await self._load(model, overrides or Overrides(), frozenset())

    async def _load(self, model: str, overrides: Overrides, before: frozenset[str]) -> str:
        before |= {model}
        for step in sorted(await asyncio.to_thread(self._steps, model, overrides) - before):
            if self._repository.ready_versions(step):
                continue
            if problem := await self._load(step, Overrides(), before):
                return problem
        lock = self._loading.setdefault(model, asyncio.Lock())
        async with lock:
            root, found = await asyncio.to_thread(self._look, model, overrides)
            if found is None:
                return f"failed to load '{model}', failed to poll from model repository"
            revisions = found.revisions()
            if not revisions:
                return f"failed to load '{model}', no version is available"
            self._want(model, root, found)
            for number in self._repository.problems(model):
                self._repository.retry(model, number)
            await self._repository.settled(model)
            problems = self._repository.problems(model)
            if not problems:
                return ""
            told = " ".join(f"version {n}: {problem};" for n, problem in problems.items())
            return f"load failed for model '{model}': {told}"

    def unload(self, model: str, *, dependents: bool = False) -> None:
        """Begin to unload a model; with `dependents`, also what an ensemble is made of."""
        waiting, seen = {model}, set[str]()
        while waiting:
            seen.add(name := waiting.pop())
            if dependents:
                for servable in self._repository.servables():
                    if servable.model == name:
                        steps = servable.config.ensemble_scheduling.step
                        waiting |= {step.model_name for step in steps} - seen
            self._repository.drop(name)

    async def _begin(self, load_models: Sequence[str]) -> None:
        known = await self._names()
        if self.mode == "explicit" and ALL_MODELS not in load_models:
            for model in load_models:
                if model not in known:
                    log.error("load_model: the repository has no model %r", model)
            known = await asyncio.to_thread(self._closure, [m for m in known if m in load_models])
        for model in known:
            await self._refresh(model)

    def _steps(self, model: str, overrides: Overrides) -> set[str]:
        found = find(self._root, model)
        if overrides.config is not None:
            found = FoundModel(self._root / model, {}, overrides.config)
        return found.steps() if found else set()

    def _closure(self, models: Sequence[str]) -> list[str]:
        """Add what the ensembles among `models` are made of."""
        waiting, seen = set(models), set[str]()
        while waiting:
            seen.add(name := waiting.pop())
            if found := find(self._root, name):
                waiting |= found.steps() - seen
        return sorted(seen)

    async def _refresh(self, model: str) -> None:
        found = await asyncio.to_thread(find, self._root, model)
        if found is None:
            self._repository.drop(model)
        else:
            self._want(model, self._root, found)

    async def _poll(self, poll_s: float) -> None:
        while True:
            await asyncio.sleep(poll_s)
            try:
                known = await self._names()
                for model in {*known, *self._repository.models()}:
                    await self._refresh(model)
            except OSError as error:
                log.error("the model repository cannot be polled: %s", error.strerror or error)

    def _want(self, model: str, root: Path, found: FoundModel) -> None:
        revisions = found.revisions()
        if not revisions:
            log.warning("model %s has no version to serve", model)
        # The newest has rank 0: whatever holds a rank keeps it until its successor is ready.
        targets = {f"rank {rank}": n for rank, n in enumerate(sorted(revisions, reverse=True))}
        fetch = partial(_bundle, root, found)
        self._repository.want(model, targets, fetch, revisions=revisions, implicit_latest=True)

    def _look(self, model: str, overrides: Overrides) -> tuple[Path, FoundModel | None]:
        root = self._root
        if not is_name(model):
            return root, None
        if overrides.files:
            root = Path(tempfile.mkdtemp(dir=self._scratch))
            lay_out(root / model, overrides.files)
        if before := self._overrides.pop(model, None):
            shutil.rmtree(before, ignore_errors=True)  # What is loaded holds its files open.
        if overrides.files:
            self._overrides[model] = root
        found = find(root, model)
        if found is not None and overrides.config is not None:
            found = FoundModel(found.folder, found.versions, overrides.config)
        return root, found


async def _bundle(root: Path, found: FoundModel, number: int) -> Bundle:
    return await asyncio.to_thread(graph_of, root, found, number)
