"""What can go wrong, by how far it reaches: a call, a stream, a connection."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import grpc

from servery_h2.frames import ErrorCode

Metadata = tuple[tuple[str, str | bytes], ...]
"""Pairs in wire order; the values of keys that end in `-bin` are bytes."""


class StatusError(Exception):
    """Ends a call with a gRPC status. Raw handlers raise it too."""

    def __init__(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()
    ) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.trailing_metadata = trailing_metadata


class H2StreamError(Exception):
    """The peer broke the rules of one stream, which is reset; the connection lives on."""

    def __init__(self, stream_id: int, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.stream_id = stream_id
        self.code = code


class H2ConnectionError(Exception):
    """The peer broke the rules of the connection, which gets GOAWAY and is closed."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def calm(reason: str) -> H2ConnectionError:
    """Return the fault of a peer that costs more than it may."""
    return H2ConnectionError(ErrorCode.ENHANCE_YOUR_CALM, reason)
