"""One stream of many requests: answered in their order, and only so many of them at a time.

Knows no transport. Who stops reading the answers stops the reading of requests, too.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import AbstractContextManager, aclosing
from typing import Any, Final, TypeAlias

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_inference import wire
from servery_inference.endpoint import Authorize, InferEndpoint
from servery_inference.metering import Tally
from servery_inference.request import InferRequest
from servery_rpc.errors import ServeryError

MAX_IN_FLIGHT: Final = 64
"""Requests of one stream that are being answered, or whose answers wait to be read."""

_INFER_RESPONSE: Final = pb.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER
_FINAL: Final = {"triton_final_response": True}

Place = Callable[[], AbstractContextManager[None]]

_Answers: TypeAlias = "asyncio.Queue[asyncio.Task[bytes] | None]"


async def answer_stream(
    messages: AsyncIterator[bytes],
    endpoint: InferEndpoint,
    authorize: Authorize,
    *,
    deadline: float | None,
    ends_on_failure: bool,
    place: Place,
    tally: Tally,
) -> AsyncGenerator[bytes]:
    """Answer serialized `ModelInferRequest`s by serialized `ModelStreamInferResponse`s.

    Args:
        messages: The requests.
        endpoint: Answers each.
        authorize: Raises to refuse a request.
        deadline: When the caller stops waiting for the stream, by `time.monotonic`; None for never.
        ends_on_failure: Whether a request that fails while it runs ends the stream.
        place: Holds the place of one request inside its block, or refuses it.
        tally: Counts the answers.

    Raises:
        ServeryError: A request failed, if that ends the stream.
    """
    stream = _Stream(endpoint, authorize, deadline, place, tally, ends_on_failure=ends_on_failure)
    async with aclosing(stream.answers(messages)) as answers:
        async for answer in answers:
            yield answer


class _Stream:
    def __init__(
        self,
        endpoint: InferEndpoint,
        authorize: Authorize,
        deadline: float | None,
        place: Place,
        tally: Tally,
        *,
        ends_on_failure: bool,
    ) -> None:
        self._place = place
        self._tally = tally
        self._deadline = deadline
        self._endpoint = endpoint
        self._authorize = authorize
        self._ends_on_failure = ends_on_failure
        self._places = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._answers: _Answers = asyncio.Queue()
        self._running: set[asyncio.Task[bytes]] = set()

    async def answers(self, messages: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        reading = asyncio.create_task(self._read(messages))
        try:
            while task := await self._answers.get():
                yield await task
                self._places.release()
            await reading  # Raises what ended the reading.
        finally:
            reading.cancel()
            for task in self._running:
                task.cancel()
            await asyncio.gather(reading, *self._running, return_exceptions=True)

    async def _read(self, messages: AsyncIterator[bytes]) -> None:
        try:
            async for message in messages:
                await self._places.acquire()
                # Decoded in turn, so that requests of one sequence start in their order.
                try:
                    request = await self._endpoint.decode(message, self._authorize)
                except ServeryError as error:
                    self._start(_refusal(message, error))
                else:
                    self._start(self._answer(request))
        finally:
            self._answers.put_nowait(None)

    def _start(self, work: Coroutine[Any, Any, bytes]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        self._answers.put_nowait(task)

    async def _answer(self, request: InferRequest) -> bytes:
        try:
            with self._place():
                answer = await self._endpoint.infer(request, self._deadline)
            encoded = await self._endpoint.encode(request, answer, _FINAL)
            self._tally.add(answer)
        except ServeryError as error:
            if self._ends_on_failure:
                raise
            return _failure(request.id, error)
        return wire.append(b"", _INFER_RESPONSE, [encoded])


async def _refusal(message: bytes, error: ServeryError) -> bytes:
    return _failure(wire.text_of(message, pb.ModelInferRequest.ID_FIELD_NUMBER), error)


def _failure(request_id: str, error: ServeryError) -> bytes:
    response = pb.ModelInferResponse(id=request_id)
    return pb.ModelStreamInferResponse(
        error_message=str(error), infer_response=response
    ).SerializeToString()
