"""The hot path: the bytes of a `ModelInferRequest` in, the bytes of its answer out.

Knows no transport, so that another one can take the place of grpcio (see docs/adr).
"""

import asyncio
from collections.abc import Callable
from typing import Final

from servery_inference.codec import decode
from servery_inference.repository import Repository

_DECODE_INLINE_BYTES: Final = 1 << 20


class InferEndpoint:
    """Answers inference requests from a repository. For one event loop."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    async def infer(self, message: bytes, authorize: Callable[[str], None]) -> bytes:
        """Answer one request.

        Args:
            message: A serialized `ModelInferRequest`.
            authorize: Called with the model's name on the wire; raises to refuse.

        Returns:
            A serialized `ModelInferResponse`.

        Raises:
            ServeryError: The request is malformed, refused, or does not fit the model.
        """
        if len(message) <= _DECODE_INLINE_BYTES:
            request = decode(message)
        else:
            request = await asyncio.to_thread(decode, message)
        authorize(request.model)
        with self._repository.lease(request.model, request.version) as servable:
            return await servable.infer(request)
