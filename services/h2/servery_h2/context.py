"""What a grpc.aio handler may ask and tell about its call."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import grpc

from servery_h2.compression import COMPRESSIONS, IDENTITY, compress
from servery_h2.faults import Metadata
from servery_h2.response import check_metadata
from servery_h2.stream import Stream


class CallContext(grpc.aio.ServicerContext[Any, Any]):
    """The context of one call, with the behaviour of grpc.aio's."""

    def __init__(
        self,
        stream: Stream,
        deserialize: Callable[[bytes], Any] | None,
        serialize: Callable[[Any], bytes] | None,
    ) -> None:
        self._stream = stream
        self._deserialize = deserialize
        self._serialize = serialize
        self._code = grpc.StatusCode.OK
        self._details = ""
        self._trailing: Metadata = ()
        self._encoding = IDENTITY
        self._compress_next = True
        self._aborted = False

    async def read(self) -> Any:
        """Return the next request; grpc.aio.EOF after the last."""
        message = await self._stream.read()
        return grpc.aio.EOF if message is None else self.parse(message)

    async def write(self, message: Any) -> None:
        """Send a response; returns when the peer has room for the next."""
        if not self._stream.head_sent:
            self._stream.begin((), self._encoding)
        packed, compressed = self._pack(message)
        await self._stream.send(packed, compressed=compressed)

    async def send_initial_metadata(self, initial_metadata: Any) -> None:
        """Send the response headers now, with metadata."""
        self._stream.begin(check_metadata(initial_metadata), self._encoding)

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()
    ) -> NoReturn:
        """End the call with a status other than OK; never returns."""
        if code is grpc.StatusCode.OK:
            code, details = grpc.StatusCode.UNKNOWN, "abort with OK"
        self._code, self._details, self._aborted = code, details, True
        if trailing_metadata:
            self._trailing = check_metadata(trailing_metadata)
        raise grpc.aio.AbortError("the call was aborted by its handler")

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with code, details and trailing metadata of `status`."""
        await self.abort(status.code, status.details, status.trailing_metadata or ())

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Send these pairs with the status."""
        self._trailing = check_metadata(trailing_metadata)

    def trailing_metadata(self) -> Any:
        """What was set to be sent with the status."""
        return self._trailing

    def invocation_metadata(self) -> Any:
        """What the caller attached, as (key, value) pairs."""
        return self._stream.head.metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        """End the call with this code when the handler returns."""
        self._code = code

    def code(self) -> grpc.StatusCode:
        """The code set so far."""
        return self._code

    def set_details(self, details: str) -> None:
        """Send this message with the status."""
        self._details = details

    def details(self) -> str:
        """The message set so far."""
        return self._details

    def set_compression(self, compression: grpc.Compression) -> None:
        """Compress responses, if the caller takes it; before the first of them."""
        encoding = COMPRESSIONS[compression]
        if self._stream.head_sent:
            raise asyncio.InvalidStateError("compression is chosen before the headers are sent")
        self._encoding = encoding if encoding in self._stream.head.accepts else IDENTITY

    def disable_next_message_compression(self) -> None:
        """Send the next response as it is."""
        self._compress_next = False

    def peer(self) -> str:
        """Who calls, such as `ipv4:127.0.0.1:40000`."""
        return self._stream.peer

    def peer_identities(self) -> Iterable[bytes] | None:
        """The subject alternative names of the client certificate, else its common name."""
        key = self.peer_identity_key()
        return None if key is None else self.auth_context()[key]

    def peer_identity_key(self) -> str | None:
        """Where `peer_identities` are in `auth_context`; None without a client certificate."""
        for key in ("x509_subject_alternative_name", "x509_common_name"):
            if key in self.auth_context():
                return key
        return None

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What TLS proved about the caller."""
        return self._stream.connection.auth_context()

    def time_remaining(self) -> Any:
        """Seconds to the deadline of the caller; None without one."""
        return self._stream.time_remaining()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback` with this context once the call is over; now if it is."""
        stream = self._stream
        if stream.closed:
            callback(self)
        elif stream.on_done is None:
            stream.on_done = [lambda: callback(self)]
        else:
            stream.on_done.append(lambda: callback(self))

    def cancelled(self) -> bool:
        """Whether the caller, its deadline or a lost connection ended the call."""
        return self._stream.cancelled

    def done(self) -> bool:
        """Whether the call is over."""
        return self._stream.closed

    def parse(self, message: bytes) -> Any:
        """Return the request that `message` is."""
        return message if self._deserialize is None else self._deserialize(message)

    def respond(self, response: Any) -> None:
        """End a unary response: the message, if the code is OK, and the status."""
        stream = self._stream
        ok = self._code is grpc.StatusCode.OK and not self._aborted
        if ok and not (self._trailing or self._details or stream.head_sent or self._encoded):
            stream.reply(response if self._serialize is None else self._serialize(response))
            return
        if ok and not stream.closed:
            if not stream.head_sent:
                stream.begin((), self._encoding)
            packed, compressed = self._pack(response)
            stream.put_message(packed, compressed=compressed)
        self.finish()

    def finish(self) -> None:
        """End the call with the status that was set."""
        self._stream.finish(self._code, self._details, self._trailing)

    @property
    def _encoded(self) -> bool:
        return self._encoding != IDENTITY

    def _pack(self, message: Any) -> tuple[bytes, bool]:
        raw = message if self._serialize is None else self._serialize(message)
        wanted, self._compress_next = self._compress_next, True
        if self._encoded and wanted:
            return compress(raw, self._encoding), True
        return raw, False
