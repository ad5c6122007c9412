"""Requests and answers between two processes of one server, both ways, over one socket.

A parcel is a JSON object and bytes. Requests are taken up in the order in which they were sent; one
that waits lets the next begin.
"""

import asyncio
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Self

from servery_inference.engine import LoadFailedError
from servery_rpc.errors import FieldInvalidError, ServeryError

_SIZES: Final = struct.Struct("!IQ")
_LIMIT_BYTES: Final = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a request says, or an answer."""

    fields: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    body: bytes = b""


Handle = Callable[[Parcel], Awaitable[Parcel]]
EMPTY: Final = Parcel()


class PeerGoneError(Exception):
    """The other process ended, or does so."""

    def __init__(self) -> None:
        super().__init__("the process ended")


class RelayedError(ServeryError):
    """What the other process refused, as it said it."""

    def __init__(self, reason: Any, message: str, metadata: Mapping[str, str]) -> None:
        super().__init__(message, **metadata)
        self.reason = reason  # type: ignore[misc]  # Here each error has its own.


class Channel:
    """One end. For one event loop."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handlers: Mapping[str, Handle],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._handlers = handlers
        self._waiting: dict[int, asyncio.Future[Parcel]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_id = 0
        self.gone = asyncio.Event()
        """Set once the other end is gone."""

    @classmethod
    @asynccontextmanager
    async def over(cls, sock: socket.socket, handlers: Mapping[str, Handle]) -> AsyncIterator[Self]:
        """Speak over a connected socket for the length of the block.

        Args:
            sock: A stream of bytes.
            handlers: What answers the requests of the other end, by method.
        """
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_LIMIT_BYTES)
        channel = cls(reader, writer, handlers)
        reading = asyncio.create_task(channel._read())
        try:
            yield channel
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def call(
        self,
        method: str,
        fields: Mapping[str, Any] = MappingProxyType({}),
        body: bytes | memoryview = b"",
    ) -> Parcel:
        """Send a request, wait for its answer.

        Raises:
            PeerGoneError: There will be none.
            LoadFailedError: A load failed.
            ServeryError: It is refused.
        """
        return await self.send(method, fields, body)

    def send(
        self,
        method: str,
        fields: Mapping[str, Any] = MappingProxyType({}),
        body: bytes | memoryview = b"",
    ) -> asyncio.Future[Parcel]:
        """Send a request now; its answer comes as that of `call`."""
        answer: asyncio.Future[Parcel] = asyncio.get_running_loop().create_future()
        if self.gone.is_set():
            answer.set_exception(PeerGoneError())
            return answer
        self._last_id += 1
        self._waiting[self._last_id] = answer
        self._write({"id": self._last_id, "method": method, "fields": dict(fields)}, body)
        return answer

    async def _read(self) -> None:
        try:
            while True:
                head_bytes, body_bytes = _SIZES.unpack(await self._reader.readexactly(_SIZES.size))
                head = json.loads(await self._reader.readexactly(head_bytes))
                self._take(head, await self._reader.readexactly(body_bytes))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._end()

    def _end(self) -> None:
        self.gone.set()
        self._writer.close()
        for task in self._tasks:
            task.cancel()
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(PeerGoneError())
                answer.exception()  # Nobody may look at it any more.

    def _take(self, head: Mapping[str, Any], body: bytes) -> None:
        parcel = Parcel(head["fields"], body)
        if "method" in head:
            task = asyncio.create_task(self._answer(head["id"], head["method"], parcel))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        answer = self._waiting.pop(head["id"], None)
        if answer is None or answer.done():
            return
        if (error := head.get("error")) is None:
            answer.set_result(parcel)
        else:
            answer.set_exception(_error_from(error))

    async def _answer(self, number: int, method: str, parcel: Parcel) -> None:
        head: dict[str, Any] = {"id": number, "fields": {}}
        body = b""
        try:
            answer = await self._handlers[method](parcel)
            head["fields"], body = dict(answer.fields), answer.body
        except (ServeryError, LoadFailedError) as error:
            head["error"] = _error_to(error)
        except PeerGoneError:
            head["error"] = {"kind": "bug", "message": f"{method} lost a process"}
        except Exception:
            log.exception("unhandled error in %s between processes", method)
            head["error"] = {"kind": "bug", "message": method}
        if not self.gone.is_set():
            self._write(head, body)

    def _write(self, head: Mapping[str, Any], body: bytes | memoryview) -> None:
        encoded = json.dumps(head).encode()
        self._writer.writelines([_SIZES.pack(len(encoded), len(body)), encoded, body])


def _error_to(error: ServeryError | LoadFailedError) -> Mapping[str, Any]:
    if isinstance(error, LoadFailedError):
        return {"kind": "load", "message": str(error)}
    kind = "field" if isinstance(error, FieldInvalidError) else "other"
    return {
        "kind": kind,
        "message": str(error),
        "reason": int(error.reason),
        "metadata": error.metadata,
    }


def _error_from(error: Mapping[str, Any]) -> Exception:
    message, metadata = error["message"], error.get("metadata", {})
    match error["kind"]:
        case "load":
            return LoadFailedError(message)
        case "field":
            invalid = FieldInvalidError(metadata["field"], metadata["value"], metadata["rule"])
            invalid.args = (message,)
            return invalid
        case "other":
            return RelayedError(error["reason"], message, metadata)
        case _:
            return RuntimeError(f"another process of this server failed: {message}")
