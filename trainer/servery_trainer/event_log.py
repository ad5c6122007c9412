"""Event logs: any number of watchers replay what happened to a resource, then follow it live."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import Column, Connection, Engine, Table, delete, insert, select

from servery_rpc.database import reads
from servery_rpc.errors import DependencyUnavailableError, FieldInvalidError, ServeryError

_BATCH = 200


class Event(Protocol):
    """A protobuf message of a watch."""

    resume_token: str


E = TypeVar("E", bound=Event)


@dataclass(frozen=True, slots=True)
class Logged(Generic[E]):
    """A kind of resource that has an event log."""

    owner: Table
    """With the columns `id`, `name` and `state`."""
    events: Table
    """With the columns `id`, `subject` and `message`."""
    key: Column[Any]
    """Of `events`: the `id` of the owner."""
    parse: Callable[[bytes], E]
    is_final: Callable[[int], bool]
    """Tells whether a resource stays in a state for ever; nothing is logged after that."""
    missing: Callable[[Any], ServeryError]
    """Makes the error for a name that no resource has."""

    def append(self, connection: Connection, owner: int, subject: str, message: bytes) -> None:
        """Log an event."""
        connection.execute(
            insert(self.events).values(
                {self.key: owner, self.events.c.subject: subject, self.events.c.message: message}
            )
        )

    def replace(self, connection: Connection, owner: int, subject: str, message: bytes) -> None:
        """Log an event in place of an older one about the same subject."""
        stale = delete(self.events).where(self.key == owner, self.events.c.subject == subject)
        connection.execute(stale)
        self.append(connection, owner, subject, message)


class EventLog(Generic[E]):
    """Lets any number of watchers follow the events of resources, without polling.

    Args:
        engine: The database with the events.
        loop: The event loop the watchers live on.
        logged: What they watch.
    """

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop, logged: Logged[E]) -> None:
        self._engine = reads(engine)
        self._loop = loop
        self._logged = logged
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._closed = False

    def changed(self, name: str) -> None:
        """Wake who watches the resource `name`. Call it from any thread, after the commit."""
        self._loop.call_soon_threadsafe(self._wake, [name])

    def close(self) -> None:
        """End every watch as UNAVAILABLE, so that a server can drain; its client resumes later."""
        self._closed = True
        self._wake(list(self._watchers))

    async def watch(self, name: object, after: int) -> AsyncGenerator[E]:
        """Yield the events of a resource behind the event `after`, until the one that ends it.

        Raises:
            ServeryError: There is no such resource.
            DependencyUnavailableError: The trainer stops; watch again to continue.
        """
        wake = asyncio.Event()
        self._watchers[str(name)].add(wake)
        try:
            while True:
                wake.clear()
                events, more, ended = await asyncio.to_thread(self._read, name, after)
                for after, event in events:
                    event.resume_token = resume_token(name, after)
                    yield event
                if self._closed:
                    raise DependencyUnavailableError("trainer")
                if ended and not more:
                    return
                if not more:
                    await wake.wait()
        finally:
            self._watchers[str(name)].discard(wake)
            if not self._watchers[str(name)]:
                del self._watchers[str(name)]

    def _wake(self, names: Iterable[str]) -> None:
        for name in names:
            for event in self._watchers.get(name, ()):
                event.set()

    def _read(self, name: object, after: int) -> tuple[list[tuple[int, E]], bool, bool]:
        """Return the next events, whether there are more, and whether the resource has ended."""
        owner, events, key = self._logged.owner, self._logged.events, self._logged.key
        with self._engine.begin() as connection:
            found = connection.execute(
                select(owner.c.id, owner.c.state).where(owner.c.name == str(name))
            ).one_or_none()
            if found is None:
                raise self._logged.missing(name)
            rows = connection.execute(
                select(events.c.id, events.c.message)
                .where(key == found.id, events.c.id > after)
                .order_by(events.c.id)
                .limit(_BATCH)
            ).all()
        parsed = [(row.id, self._logged.parse(row.message)) for row in rows]
        return parsed, len(rows) == _BATCH, self._logged.is_final(found.state)


def resume_token(name: object, position: int) -> str:
    """Return what a caller passes to continue a stream about `name` behind `position`."""
    return f"{str(name).rpartition('/')[2]}:{position}"


def parse_resume_token(name: object, token: str) -> int:
    """Return the position behind which a stream about `name` continues; 0 for an empty token.

    Raises:
        FieldInvalidError: It is not a token of a stream about `name`.
    """
    if not token:
        return 0
    position = token.rpartition(":")[2]
    decimal = position.isascii() and position.isdecimal() and len(position) <= 18
    if not decimal or token != resume_token(name, int(position)):
        raise FieldInvalidError(
            "resume_token", token, "be empty or the resume_token of a response about this resource"
        )
    return int(position)
