"""Requests that wait for their turn: in which order, how many, and for how long.

Decides nothing about batches and knows no clock of its own.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from servery.errors.v1 import error_reason_pb2 as reasons
from servery.inference.v1 import model_config_pb2 as pb
from servery_inference.request import Array, Terms, shown
from servery_rpc.errors import ServeryError

_US: Final = 1e-6


class QueueFullError(ServeryError):
    """As many requests wait as may."""

    reason = reasons.ERROR_REASON_QUEUE_FULL

    def __init__(self, model: str, retry_after_ms: int) -> None:
        super().__init__("Exceeds maximum queue size", model=shown(model))
        self.retry_after_ms = retry_after_ms


class QueueTimeoutError(ServeryError):
    """A request waited for as long as it may, or would have to."""

    reason = reasons.ERROR_REASON_QUEUE_TIMEOUT

    def __init__(self, model: str, retry_after_ms: int | None = None) -> None:
        super().__init__("Request timeout expired", model=shown(model))
        self.retry_after_ms = retry_after_ms


class DeadlineUnreachableError(ServeryError):
    """An answer cannot be there by the deadline of its call."""

    reason = reasons.ERROR_REASON_DEADLINE_UNREACHABLE

    def __init__(self, model: str, retry_after_ms: int | None = None) -> None:
        super().__init__(
            f"model '{shown(model)}' cannot answer by the deadline of this call; allow it more"
            " time, or try again when the server is less busy",
            model=shown(model),
        )
        self.retry_after_ms = retry_after_ms


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """What holds for the requests of one level."""

    timeout_s: float = 0.0
    """Longest wait of requests that ask for none; 0 means no limit."""

    may_override: bool = True
    """Whether a request may ask for a longer wait than `timeout_s`."""

    delays: bool = False
    """Whether a request whose wait is over is served after all others, instead of refused."""

    max_size: int = 0
    """Most requests that wait; 0 leaves it to the limit of the process."""

    @classmethod
    def of(cls, policy: pb.ModelQueuePolicy) -> Self:
        """Read a config."""
        return cls(
            policy.default_timeout_microseconds * _US,
            policy.allow_timeout_override or not policy.default_timeout_microseconds,
            policy.timeout_action == pb.ModelQueuePolicy.DELAY,
            policy.max_queue_size,
        )

    def wait_s(self, terms: Terms) -> float | None:
        """Return how long a request may wait; None if for ever.

        A request may always ask for less than the default.
        """
        asked, default = max(terms.timeout_us, 0) * _US, self.timeout_s
        if not asked or not default:
            return asked or default or None
        return asked if self.may_override else min(asked, default)


@dataclass(slots=True, eq=False)
class Work:
    """One request that waits or runs."""

    feed: Mapping[str, Array]
    names: Sequence[str]
    """Outputs to compute, in the order of the model."""

    rows: int
    size: int
    """See `costs`."""

    arrival_ns: int
    deadline: float | None
    """When its caller stops waiting, by `time.monotonic`."""

    future: asyncio.Future[Any]
    level: int = 0
    kind: Hashable = None
    """Only works of one kind may share a batch."""

    is_alone: bool = False
    """Whether it shares no batch at all."""

    since: float = 0.0
    """When it joined the queue, by `time.monotonic`."""

    cost_s: float = 0.0

    ahead_s: float = 0.0
    """What the runs ahead of it take when it joins the queue; 0 to learn nothing from its wait."""

    timer: asyncio.TimerHandle | None = None
    batch: Any = None
    """The running batch it is part of."""

    outcome: Any = None
    """What it came to, while those before it are not answered."""


class Room:
    """How many requests may wait in this process, over all models."""

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self.taken = 0

    def is_full(self) -> bool:
        """Tell whether no more may wait."""
        return self.taken >= self._max_requests


@dataclass(slots=True)
class _Level:
    policy: QueuePolicy
    waiting: OrderedDict[Work, None] = field(default_factory=OrderedDict)
    late: OrderedDict[Work, None] = field(default_factory=OrderedDict)
    cost_s: float = 0.0


class WorkQueue:
    """Works by level, in the order of their arrival; late ones after all others of their level.

    Args:
        policies: Of level 1, 2, …; at least one.
        room: Shared with other queues.
    """

    def __init__(self, policies: Sequence[QueuePolicy], room: Room) -> None:
        self._levels = [_Level(policy) for policy in policies]
        self._room = room
        self._size = 0

    def __len__(self) -> int:
        """Count all works."""
        return self._size

    def __iter__(self) -> Iterator[Work]:
        """Give the works in the order in which they are served."""
        for level in self._levels:
            yield from level.waiting
            yield from level.late

    @property
    def num_levels(self) -> int:
        """Of priority."""
        return len(self._levels)

    def policy(self, level: int) -> QueuePolicy:
        """Return what holds for level `level`, from 1 up."""
        return self._levels[level - 1].policy

    def is_full(self, level: int) -> bool:
        """Tell whether a work of this level is one too many."""
        line = self._levels[level - 1]
        limit = line.policy.max_size
        return self._room.is_full() or 0 < limit <= len(line.waiting) + len(line.late)

    def ahead_s(self, level: int) -> float:
        """Return the seconds of work that is served before a new one of this level."""
        return sum(line.cost_s for line in self._levels[:level])

    def put(self, work: Work) -> None:
        """Append a work to its level."""
        line = self._levels[work.level - 1]
        line.waiting[work] = None
        line.cost_s += work.cost_s
        self._size += 1
        self._room.taken += 1

    def postpone(self, work: Work) -> None:
        """Let all others of its level go before a work that waits."""
        line = self._levels[work.level - 1]
        if work in line.waiting:
            del line.waiting[work]
            line.late[work] = None

    def remove(self, work: Work) -> bool:
        """Take a work out; return whether it was waiting."""
        line = self._levels[work.level - 1]
        for works in (line.waiting, line.late):
            if work in works:
                del works[work]
                line.cost_s = line.cost_s - work.cost_s if works or line.waiting else 0.0
                self._size -= 1
                self._room.taken -= 1
                return True
        return False
