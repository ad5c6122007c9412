"""Lets runs begin only while the resources they need are free, over all models of the process.

As Triton's rate limiter: instances name resources and how much of each a run takes. Of those that
wait for one, the instance goes first that had least of its share, which is 1 / priority.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from servery_inference.engine import LoadFailedError
from servery_inference.run_resources import GLOBAL, Demand, Provision, Resource

OFF: Final = "off"
EXECUTION_COUNT: Final = "execution_count"
MODES: Final = (OFF, EXECUTION_COUNT)


@dataclass(slots=True, eq=False)
class Instance:
    """One that runs, or may."""

    demand: Demand

    passed: int = 0
    """The turns it had, each as long as its priority."""

    is_running: bool = False


class RateLimiter:
    """The resources of a process, and who waits for them. For one event loop.

    Args:
        provisions: What there is; empty for as much as the instance takes that takes most.
    """

    def __init__(self, provisions: Sequence[Provision] = ()) -> None:
        self._provisions = provisions
        self._members: set[Turns] = set()
        self._line: dict[Instance, Callable[[], None]] = {}
        self._limits: Mapping[Resource, int] = {}
        self._taken: Counter[Resource] = Counter()
        self._now = 0

    def join(self, demands: Sequence[Demand]) -> "Turns":
        """Take a model in, with what a run of each of its instances takes.

        Raises:
            LoadFailedError: There is less of a resource, or it is global and not.
        """
        turns = Turns(self, demands)
        self._limits = self._limits_of({*self._members, turns})
        self._members.add(turns)
        return turns

    def leave(self, turns: "Turns") -> None:
        """Forget a model that runs no more."""
        self._members.discard(turns)
        self._limits = self._limits_of(self._members)

    def line_up(self, instance: Instance, grant: Callable[[], None]) -> None:
        """Let an instance stand in line; `grant` is called when it has its turn."""
        # What was idle for long has no claim to all turns from now on.
        instance.passed = max(instance.passed, self._now)
        self._line[instance] = grant
        self._advance()

    def withdraw(self, instance: Instance) -> None:
        """Let an instance stand in line no more."""
        del self._line[instance]
        self._advance()

    def release(self, instance: Instance) -> None:
        """Take back what an instance had for its turn."""
        self._taken.subtract(instance.demand.resources)
        # First, whoever had it may stand in line again.
        asyncio.get_running_loop().call_soon(self._advance)

    def _advance(self) -> None:
        """Give every instance its turn that there is room for, in their order."""
        kept: set[Resource] = set()
        for instance in sorted(self._line, key=lambda instance: instance.passed):
            wanted = instance.demand.resources
            # What one waits for is not taken by those behind it, who would starve it.
            if not kept.isdisjoint(wanted) or not self._fits(wanted):
                kept.update(wanted)
                continue
            self._taken.update(wanted)
            self._now = max(self._now, instance.passed)
            instance.passed += instance.demand.priority
            self._line.pop(instance)()

    def _fits(self, wanted: Mapping[Resource, int]) -> bool:
        return all(self._taken[key] + count <= self._limits[key] for key, count in wanted.items())

    def _limits_of(self, members: "Iterable[Turns]") -> dict[Resource, int]:
        limits: dict[Resource, int] = {}
        for turns in members:
            for demand in turns.demands:
                for key, count in demand.resources.items():
                    limits[key] = max(limits.get(key, 0), count)
        for device, name in limits:
            if device != GLOBAL and (GLOBAL, name) in limits:
                raise LoadFailedError(
                    f'Resource "{name[:100]}" is present as both global and device-specific'
                    " resource in the model configuration."
                )
        if not self._provisions:
            return limits
        return {key: self._provided(key, needed) for key, needed in limits.items()}

    def _provided(self, key: Resource, needed: int) -> int:
        device, name = key
        given = max(
            (
                provision.count
                for provision in self._provisions
                if provision.name == name
                and (device == GLOBAL or provision.device in (None, device))
            ),
            default=0,
        )
        if given < needed:
            raise LoadFailedError(
                f'Resource count for "{name[:100]}" is limited to {given} which will prevent'
                " scheduling of one or more model instances, the minimum required count is"
                f" {needed}"
            )
        return given


class Turns:
    """The instances of one model, before the limiter. At most one of them stands in line.

    Args:
        limiter: What they share.
        demands: Of every instance.
    """

    def __init__(self, limiter: RateLimiter, demands: Sequence[Demand]) -> None:
        self.demands = demands
        self._limiter = limiter
        self._instances = [Instance(demand) for demand in demands]
        self._next: Instance | None = None
        self._is_granted = False
        self._wake: Callable[[], None] | None = None

    def take(self, wake: Callable[[], None]) -> Instance | None:
        """Begin a run, of which `end` tells the end; None if it is not this model's turn.

        Args:
            wake: Called when it is; until then, or `withdraw`, the model stands in line.
        """
        self._wake = None
        if self._next is None:
            idle = [instance for instance in self._instances if not instance.is_running]
            if not idle:
                return None  # Whoever ends a run tries again.
            self._next = min(idle, key=lambda instance: instance.passed)
            self._limiter.line_up(self._next, self._grant)
        if not self._is_granted:
            self._wake = wake
            return None
        instance, self._next, self._is_granted = self._next, None, False
        instance.is_running = True
        return instance

    def withdraw(self) -> None:
        """Give up the place in line, or the turn that is not used."""
        if self._next is None:
            return
        instance, self._next = self._next, None
        if self._is_granted:
            self._is_granted = False
            instance.passed -= instance.demand.priority
            self._limiter.release(instance)
        else:
            self._limiter.withdraw(instance)

    def end(self, instance: Instance) -> None:
        """Give back what a run had."""
        instance.is_running = False
        self._limiter.release(instance)

    def close(self) -> None:
        """Leave the limiter, when nothing runs any more."""
        self.withdraw()
        self._limiter.leave(self)

    def _grant(self) -> None:
        self._is_granted = True
        if self._wake is not None:
            self._wake()
