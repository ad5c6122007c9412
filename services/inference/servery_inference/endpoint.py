"""The hot path: the bytes of a `ModelInferRequest` in, the bytes of its answer out.

Knows no transport, so that another one can take the place of grpcio (see docs/adr).
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from servery_inference.codec import decode, encode
from servery_inference.repository import Repository
from servery_inference.request import Answer, InferRequest, Output

_INLINE_BYTES: Final = 1 << 20
_INLINE_TEXTS: Final = 1 << 10

Authorize = Callable[[str], None]
"""Called with the model's name on the wire; raises to refuse."""


class InferEndpoint:
    """Answers inference requests from a repository. For one event loop."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    async def decode(self, message: bytes, authorize: Authorize) -> InferRequest:
        """Read a serialized `ModelInferRequest`; see `codec.decode`."""
        if len(message) <= _INLINE_BYTES:
            request = decode(message)
        else:
            request = await asyncio.to_thread(decode, message)
        authorize(request.model)
        return request

    async def infer(self, request: InferRequest) -> Answer:
        """Answer one request that the caller may make.

        Raises:
            ServeryError: It is refused, or does not fit the model.
        """
        with self._repository.lease(request.model, request.version) as servable:
            return await servable.infer(request)

    async def encode(
        self,
        request: InferRequest,
        answer: Answer,
        parameters: Mapping[str, bool] = MappingProxyType({}),
    ) -> bytes:
        """Serialize the `ModelInferResponse` to `request`, with `parameters` of its own."""
        if _is_small(answer.outputs):
            return encode(request, answer, parameters)
        return await asyncio.to_thread(encode, request, answer, parameters)


def _is_small(outputs: Sequence[Output]) -> bool:
    """Whether rendering takes less than a hand-over to another thread is worth."""
    size = texts = 0
    for output in outputs:
        size += output.value.nbytes
        texts += output.value.size if output.value.dtype.kind == "O" else 0
    return size <= _INLINE_BYTES and texts <= _INLINE_TEXTS
