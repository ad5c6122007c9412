"""A server of grpcio whose handlers are guarded when they are added.

Asking an interceptor for every call, as grpcio does, costs more than all that a guard does.
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import grpc

from servery_rpc.interceptor import Context, ServeryInterceptor

First = Callable[[bytes, Context], Awaitable[bytes | None]]
"""Answers a call, or leaves it to another handler by None."""


class GuardedServer(grpc.aio.Server):
    """Guards what is added to another server.

    Args:
        server: Without interceptors.
        interceptor: Guards.
    """

    def __init__(self, server: grpc.aio.Server, interceptor: ServeryInterceptor) -> None:
        self._server = server
        self._interceptor = interceptor
        self._first: dict[str, First] = {}

    def add_first(self, method: str, handle: First) -> None:
        """Ask `handle` before the guarded handler of a unary method of bytes, added later.

        It is not guarded: it neither raises nor counts calls that it leaves to the other.
        """
        self._first[method] = handle

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]
    ) -> None:
        """See `grpc.aio.Server`."""
        self._server.add_generic_rpc_handlers(
            [
                _GuardedHandlers(handlers, self._interceptor, self._first)
                for handlers in generic_rpc_handlers
            ]
        )

    def add_insecure_port(self, address: str) -> int:
        """See `grpc.aio.Server`."""
        return self._server.add_insecure_port(address)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """See `grpc.aio.Server`."""
        return self._server.add_secure_port(address, server_credentials)

    async def start(self) -> None:
        """See `grpc.aio.Server`."""
        await self._server.start()

    async def stop(self, grace: float | None) -> None:
        """See `grpc.aio.Server`."""
        await self._server.stop(grace)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """See `grpc.aio.Server`."""
        return await self._server.wait_for_termination(timeout)


class _GuardedHandlers(grpc.GenericRpcHandler):
    def __init__(
        self,
        handlers: grpc.GenericRpcHandler,
        interceptor: ServeryInterceptor,
        first: Mapping[str, First],
    ) -> None:
        self._handlers = handlers
        self._interceptor = interceptor
        self._first = first
        self._made: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        if method not in self._made:
            handler = self._handlers.service(handler_call_details)
            if handler is None:
                return None
            guarded: Any = self._interceptor.guard(handler, method)
            if method in self._first:
                both = _one_after_the_other(self._first[method], guarded.unary_unary)
                guarded = grpc.unary_unary_rpc_method_handler(both)
            self._made[method] = guarded
        return self._made[method]


def _one_after_the_other(
    first: First, second: Callable[[bytes, Context], Awaitable[bytes]]
) -> Callable[[bytes, Context], Awaitable[bytes]]:
    async def handle(request: bytes, context: Context) -> bytes:
        answer = await first(request, context)
        return await second(request, context) if answer is None else answer

    return handle
