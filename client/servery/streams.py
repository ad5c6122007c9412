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
    heard = time.monotonic()
    while True:
        try:
            for response in connection.stream(method, request):
                request.resume_token = response.resume_token
                heard = time.monotonic()
                yield response
            return
        except ApiError as error:
            away_s = time.monotonic() - heard
            if error.code is not grpc.StatusCode.UNAVAILABLE or away_s > _GIVE_UP_S:
                raise
            time.sleep(_RECONNECT_S)
