"""One model by its versions: what is wanted of it, what there is, and what a request means."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass, field

from servery_inference.bundle import Bundle
from servery_inference.ensemble_members import Members
from servery_inference.rollout import State
from servery_inference.servable import Servable
from servery_rpc.names import PRODUCTION

Fetch = Callable[[int], Awaitable[Bundle]]
"""Brings the files of a version of one model; raises `LoadFailedError` if there is no hope."""


@dataclass(slots=True)
class Version:
    """One version, from when it was first wanted."""

    state: State

    revision: Hashable = None
    """Tells its contents from what they were before."""

    reason: str = ""
    """Why it is not served, or not as it is wanted."""

    servable: Servable | None = None

    members: Members | None = None
    """What an ensemble is made of."""

    task: asyncio.Task[None] | None = None
    """What loads, replaces or drains it."""


@dataclass(slots=True)
class ModelLine:
    """What is wanted of a model, and what there is of it."""

    name: str
    fetch: Fetch

    targets: Mapping[str, int] = field(default_factory=dict)
    """The version that each alias shall mean."""

    serving: Mapping[str, int] = field(default_factory=dict)
    """The version that each alias means."""

    revisions: Mapping[int, Hashable] = field(default_factory=dict)

    implicit_latest: bool = False
    """Whether a request without a version means the newest, not the alias `production`."""

    current: int = 0
    """The version that a request without one means; 0 if there is none."""

    versions: dict[int, Version] = field(default_factory=dict)

    def ready(self) -> list[int]:
        """Return the numbers of the versions that answer, rising."""
        return sorted(n for n, version in self.versions.items() if version.state is State.READY)

    def choose_current(self) -> None:
        """Find out what a request without a version means from now on."""
        latest = max(self.ready(), default=0)
        self.current = latest if self.implicit_latest else self.serving.get(PRODUCTION, 0)

    def find(self, number: int) -> Servable | None:
        """Return a version, if it answers."""
        version = self.versions.get(number)
        return version.servable if version and version.state is State.READY else None

    def problems(self) -> dict[int, str]:
        """Return why versions that are wanted are not served as they are wanted."""
        return {
            number: self.versions[number].reason
            for number in sorted(set(self.targets.values()))
            if number in self.versions and self.versions[number].reason
        }
