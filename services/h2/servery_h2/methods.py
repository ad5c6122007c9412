"""Which handler answers which path."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from servery_h2.stream import Stream


class RawOutcome(Enum):
    """What a raw handler returns instead of an answer."""

    ORDINARY = auto()
    """The ordinary handler of the path, which must have one, answers."""

    LATER = auto()
    """The raw handler calls `Stream.reply` or `hand_over`, within milliseconds: until then, only a
    clock of a second looks at the deadline of the call."""


RawHandler = Callable[[bytes, "Stream"], "bytes | RawOutcome | Awaitable[bytes]"]
"""Answers a unary call with serialized messages. It runs on the loop, inside the parsing of input:
returning bytes costs no task; anything that takes over a millisecond belongs in an awaitable, which
is cancelled when the call ends before it."""

Handler = Any  # grpc.RpcMethodHandler, whose type parameters nobody here knows.


class _Details:
    """What an interceptor learns: the method. Metadata is empty on purpose, see `Method`."""

    __slots__ = ("invocation_metadata", "method")

    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata: tuple[()] = ()


class Method:
    """One path that is served.

    Interceptors run once per method and not per call: what they return is kept. So they wrap
    handlers, and what depends on the caller belongs into the wrapper, which has the context.
    """

    __slots__ = ("_interceptors", "_resolving", "handler", "path", "raw", "streams_requests")

    def __init__(
        self,
        path: str,
        handler: Handler | None,
        raw: RawHandler | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        self.path = path
        self.handler = handler
        self.raw = raw
        self.streams_requests = handler is not None and bool(handler.request_streaming)
        self._interceptors = interceptors
        self._resolving: asyncio.Future[Handler | None] | None = None

    async def resolve(self) -> Handler | None:
        """Return the handler behind all interceptors; None if one of them hides it."""
        if self._resolving is None:
            self._resolving = asyncio.ensure_future(self._intercept())
        try:
            return await asyncio.shield(self._resolving)
        except Exception:
            self._resolving = None  # The next call tries again.
            raise

    async def _intercept(self) -> Handler | None:
        async def innermost(_: Any) -> Handler | None:
            return self.handler

        continuation: Callable[[Any], Awaitable[Handler | None]] = innermost
        for interceptor in reversed(self._interceptors):
            continuation = partial(interceptor.intercept_service, continuation)
        return await continuation(_Details(self.path))


class Methods:
    """All paths of a server. Unknown ones are not remembered: a peer can invent any number."""

    def __init__(self, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> None:
        self._interceptors = tuple(interceptors)
        self._generic: list[grpc.GenericRpcHandler] = []
        self._registered: dict[str, Handler] = {}
        self._raw: dict[str, RawHandler] = {}
        self._found: dict[str, Method] = {}

    def add_generic(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Ask `handlers`, in order, for paths that are not registered."""
        self._generic.extend(handlers)

    def add_registered(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Serve `/{service}/{name}` for every name."""
        for name, handler in handlers.items():
            self._registered[f"/{service}/{name}"] = handler

    def add_raw(self, path: str, handler: RawHandler) -> None:
        """Serve `path` without tasks, contexts or interceptors, as far as `handler` answers."""
        self._raw[path] = handler

    def find(self, path: str) -> Method | None:
        """Return what serves `path`."""
        found = self._found.get(path)
        if found is not None:
            return found
        handler, raw = self._ordinary(path), self._raw.get(path)
        if handler is None and raw is None:
            return None
        self._found[path] = Method(path, handler, raw, self._interceptors)
        return self._found[path]

    def _ordinary(self, path: str) -> Handler | None:
        if path in self._registered:
            return self._registered[path]
        details: Any = _Details(path)
        answers = (generic.service(details) for generic in self._generic)
        return next((handler for handler in answers if handler is not None), None)
