"""Watching the log: a snapshot, then every change, with tokens to continue after each."""

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from servery_registry.store import Store
from servery_registry.version import Alias, Version
from servery_rpc.errors import DependencyUnavailableError, FieldInvalidError
from servery_rpc.names import AliasName, ModelName

_BATCH: Final = 256

Subject = Version | Alias | AliasName


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing a watcher is told."""

    subject: Subject | None
    """What exists or changed; None: the snapshot is complete."""

    resume_token: str
    """Continues behind this notice; empty inside the snapshot."""


def model_of(subject: Subject) -> ModelName:
    """Return the model that a notice is about."""
    return subject.model if isinstance(subject, AliasName) else subject.name.model


class Watch:
    """Serves any number of watchers of one store, on one event loop."""

    def __init__(self, store: Store, log_id: str) -> None:
        """Build it; `log_id` is that of `store`."""
        self._store = store
        self._log_id = log_id
        self._grown = asyncio.Event()
        self._closed = False

    def announce(self) -> None:
        """Wake the watchers: the log may have grown. Call it on the event loop."""
        self._grown.set()
        self._grown = asyncio.Event()

    def close(self) -> None:
        """End every watch, because the server stops."""
        self._closed = True
        self.announce()

    async def notices(
        self, tenant: str | None, resume_token: str, visible: Callable[[ModelName], bool]
    ) -> AsyncIterator[Notice]:
        """Yield notices about the `visible` models of one tenant (None: all), without end.

        Raises:
            FieldInvalidError: `resume_token` is not one of such a watch.
            DependencyUnavailableError: The server stops.
        """
        if resume_token:
            position = await self._parse(tenant, resume_token)
        else:
            snapshot = await asyncio.to_thread(self._store.snapshot, tenant)
            present: list[Subject] = [*snapshot.versions, *snapshot.aliases]
            for subject in present:
                if visible(model_of(subject)):
                    yield Notice(subject, "")
            position = snapshot.position
            yield Notice(None, self._token(tenant, position))
        while True:
            grown = self._grown  # Taken before the look, so that no change slips in between.
            changes = await asyncio.to_thread(self._store.changes, tenant, position, _BATCH)
            for change in changes:
                position = change.position
                if visible(model_of(change.subject)):
                    yield Notice(change.subject, self._token(tenant, position))
            if self._closed:
                raise DependencyUnavailableError("registry")
            if not changes:
                await grown.wait()

    def _token(self, tenant: str | None, position: int) -> str:
        return base64.urlsafe_b64encode(
            json.dumps([self._log_id, tenant, position]).encode()
        ).decode()

    async def _parse(self, tenant: str | None, token: str) -> int:
        try:
            log_id, of, position = json.loads(base64.urlsafe_b64decode(token))
        except (ValueError, TypeError, binascii.Error, RecursionError):
            log_id = of = position = None
        last = await asyncio.to_thread(self._store.position)
        if (log_id, of) != (self._log_id, tenant) or type(position) is not int:
            position = -1
        if not 0 <= position <= last:
            raise FieldInvalidError(
                "resume_token",
                token,
                "be one that this registry gave for the same parent; leave it empty to begin anew",
            )
        return int(position)
