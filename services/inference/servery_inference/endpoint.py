"""The hot path: the bytes of a `ModelInferRequest` in, the bytes of its answer out.

Knows no transport, so that another one can take the place of grpcio (see docs/adr).
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from servery_inference.classification import classify
from servery_inference.codec import decode, encode
from servery_inference.repository import Repository
from servery_inference.request import Answer, InferRequest, Output, Placement
from servery_inference.servable import Servable
from servery_inference.shared_memory import SharedMemory
from servery_inference.tensors import to_raw
from servery_rpc.errors import UnsupportedError

_INLINE_BYTES: Final = 1 << 20
_INLINE_TEXTS: Final = 1 << 10
_PLAIN: Final = Placement(None, 0)

Authorize = Callable[[InferRequest], None]
"""Raises to refuse a request."""


class InferEndpoint:
    """Answers inference requests from a repository. For one event loop.

    Args:
        repository: The models.
        memory: Regions that tensors may be in; None if there are none.
    """

    def __init__(self, repository: Repository, memory: SharedMemory | None) -> None:
        self._repository = repository
        self._memory = memory

    async def decode(self, message: bytes, authorize: Authorize) -> InferRequest:
        """Read a serialized `ModelInferRequest`; see `codec.decode`."""
        if len(message) <= _INLINE_BYTES:
            request = decode(message)
        else:
            request = await asyncio.to_thread(decode, message)
        return await self.admit(request, authorize)

    async def admit(self, request: InferRequest, authorize: Authorize) -> InferRequest:
        """Refuse what the caller may not ask for, and gather what is in shared memory.

        Raises:
            ServeryError: `authorize` refuses, or a region is not as the request says.
        """
        authorize(request)
        if not request.shares_memory:
            return request
        if self._memory is None:
            raise UnsupportedError("shared memory, unless it is started with --shared-memory true,")
        return await asyncio.to_thread(_gathered, request, self._memory)

    async def infer(self, request: InferRequest, deadline: float | None = None) -> Answer:
        """Answer one request that was admitted.

        Args:
            request: What to answer.
            deadline: When its caller stops waiting, by `time.monotonic`; None for never.

        Raises:
            ServeryError: It is refused, or does not fit the model.
        """
        with self._repository.lease(request.model, request.version) as found:
            servable = found.explainer() if request.explain else found
            answer = await servable.infer(request, deadline)
            if not request.placements:
                return answer
            placed = await asyncio.to_thread(
                _placed, request, answer.outputs, servable, self._memory
            )
            return replace(answer, outputs=placed)

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


def _gathered(request: InferRequest, memory: SharedMemory) -> InferRequest:
    inputs = tuple(
        replace(tensor, raw=memory.read(tensor.region)) if tensor.region else tensor
        for tensor in request.inputs
    )
    texts = sum(len(t.raw or b"") for t in inputs if t.region and t.datatype == "BYTES")
    return replace(request, inputs=inputs, parsed_bytes=request.parsed_bytes + texts)


def _placed(
    request: InferRequest,
    outputs: Sequence[Output],
    servable: Servable,
    memory: SharedMemory | None,
) -> list[Output]:
    placed: list[Output] = []
    for output in outputs:
        placement = request.placements.get(output.name, _PLAIN)
        if placement.num_classes:
            names = servable.labels.get(output.name, ())
            is_batched = servable.config.max_batch_size > 0
            output = classify(
                output, placement.num_classes, names, request.model, is_batched=is_batched
            )
        if placement.region and memory:
            raw = to_raw(output.value)
            memory.write(placement.region, raw, output.name)
            written = replace(placement.region, size_bytes=len(raw))
            output = replace(output, region=written)
        placed.append(output)
    return placed
