"""Streams that go on where they broke off."""

import time
from collections.abc import Iterator
from typing import Any, Final

import grpc

from servery.connection import Connection
from servery.errors import ApiError

_RECONNECT_S: Final = 0.5
_GIVE_UP_S: Final = 60.0


def resumed(connection: Connection, method: Any, request: Any) -> Iterator[Any]:
    """Yield the responses of a stream to its end, over as many calls as that takes.

    Args:
        connection: To the server.
        method: Of a stub; its requests and responses have a `resume_token`.
        request: Changed as the stream advances.

    Raises:
        ApiError: The server refused the call, or was away for a minute.
    """
    away_since: float | None = None
    while True:
        called = time.monotonic()
        try:
            for response in connection.stream(method, request):
                request.resume_token = response.resume_token
                away_since = None
                yield response
            return
        except ApiError as error:
            now = time.monotonic()
            if away_since is None or now - called > _GIVE_UP_S:  # a stream may be silent for hours
                away_since = now
            if not _broke_off(error) or now - away_since > _GIVE_UP_S:
                raise
            time.sleep(_RECONNECT_S)


def _broke_off(error: ApiError) -> bool:
    """Tell whether the stream may go on over another connection.

    A proxy that loses the server in the middle of a stream resets it: INTERNAL, without the reason
    that a server would name.
    """
    if error.code is grpc.StatusCode.INTERNAL:
        return not error.reason
    return error.code is grpc.StatusCode.UNAVAILABLE
