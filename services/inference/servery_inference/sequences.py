"""Requests that belong together: in order, one at a time, with the state that is between them.

A sequence holds one of a limited number of places from its first request to its last, or until it
is idle for too long. Requests of different sequences share batches.
"""

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from servery_inference.queueing import (
    DeadlineUnreachableError,
    QueueFullError,
    QueueTimeoutError,
    Room,
)
from servery_inference.request import Array, InferenceRequestInvalidError, Terms, shown
from servery_inference.runner import Result, Runner
from servery_inference.sequence_plan import SequencePlan

_US: Final = 1e-6
_RETRY_MS: Final = 100


@dataclass(slots=True, eq=False)
class _Sequence:
    id: int | str
    state: dict[str, Array]
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    place: asyncio.Future[None] | None = None
    requests: int = 0
    is_over: bool = False
    idle: asyncio.TimerHandle | None = None


class Sequences:
    """Keeps the sequences of one version. For one event loop.

    Args:
        model: Name on the wire, for errors.
        plan: What its config says.
        runner: Runs single requests.
        room: Bounds what waits in the process.
    """

    def __init__(self, model: str, plan: SequencePlan, runner: Runner, room: Room) -> None:
        self._model = model
        self._plan = plan
        self._runner = runner
        self._room = room
        self._sequences: dict[int | str, _Sequence] = {}
        self._taken = 0
        self._backlog: deque[_Sequence] = deque()

    async def run(
        self,
        feed: Mapping[str, Array],
        names: Sequence[str],
        rows: int,
        size: int,
        terms: Terms,
        deadline: float | None,
    ) -> Result:
        """Run one request after those of its sequence that came before; see `Runner.run`.

        Raises:
            InferenceRequestInvalidError: It names no sequence, or one that was not started.
        """
        arrival = time.perf_counter_ns()
        sequence = self._find(rows, terms)
        outputs = [name for name in self._plan.states.values() if name not in names]
        sequence.requests += 1
        if terms.sequence_end:
            self._forget(sequence)
        try:
            signals = {signal.name: signal.of(terms, self._model) for signal in self._plan.signals}
            await self._wait(sequence, terms, deadline)
            try:
                waited_ns = time.perf_counter_ns() - arrival
                whole = {**feed, **signals, **sequence.state}
                result = await self._runner.run(
                    whole, [*names, *outputs], rows, size, replace(terms, timeout_us=0), deadline
                )
                values = dict(zip([*names, *outputs], result.values, strict=True))
                for taker, giver in self._plan.states.items():
                    state = values[giver]
                    sequence.state[taker] = state if state.base is None else state.copy()
            finally:
                sequence.turn.release()
        finally:
            sequence.requests -= 1
            self._rest(sequence)
        timing = replace(result.timing, queue_ns=result.timing.queue_ns + waited_ns)
        return Result([values[name] for name in names], timing)

    def _find(self, rows: int, terms: Terms) -> _Sequence:
        if not terms.sequence_id:
            raise InferenceRequestInvalidError(
                f"inference request to model '{self._model}' must specify a non-zero or non-empty"
                " correlation ID",
                self._model,
            )
        if self._plan.is_batched and rows != 1:
            raise InferenceRequestInvalidError(
                f"inference request to model '{self._model}' must specify batch-size 1 due to"
                " requirements of sequence batcher",
                self._model,
            )
        sequence = self._sequences.get(terms.sequence_id)
        if not terms.sequence_start:
            if sequence is None:
                raise self._not_started(terms)
            return sequence
        if sequence is not None:
            self._forget(sequence)
            self._rest(sequence)
        if self._room.is_full():
            raise QueueFullError(self._model, _RETRY_MS)
        sequence = _Sequence(terms.sequence_id, dict(self._plan.initial))
        self._sequences[terms.sequence_id] = sequence
        if self._taken < self._plan.places:
            self._taken += 1
        else:
            sequence.place = asyncio.get_running_loop().create_future()
            self._backlog.append(sequence)
        return sequence

    def _not_started(self, terms: Terms) -> InferenceRequestInvalidError:
        return InferenceRequestInvalidError(
            f"inference request for sequence {shown(str(terms.sequence_id))} to model"
            f" '{self._model}' must specify the START flag on the first request of the sequence",
            self._model,
        )

    async def _wait(self, sequence: _Sequence, terms: Terms, deadline: float | None) -> None:
        """Return when it is the turn of a request; its caller releases `sequence.turn`."""
        if sequence.idle is not None:
            sequence.idle.cancel()
            sequence.idle = None
        now = time.monotonic()
        limits = [deadline - now] if deadline is not None else []
        if terms.timeout_us > 0:
            limits.append(terms.timeout_us * _US)
        self._room.taken += 1
        try:
            async with asyncio.timeout(min(limits, default=None)):
                await sequence.turn.acquire()
                try:
                    if sequence.place is not None:
                        await asyncio.shield(sequence.place)
                except BaseException:
                    sequence.turn.release()
                    raise
        except TimeoutError:
            if deadline is not None and time.monotonic() >= deadline:
                raise DeadlineUnreachableError(self._model) from None
            raise QueueTimeoutError(self._model) from None
        finally:
            self._room.taken -= 1

    def _forget(self, sequence: _Sequence) -> None:
        """Let nobody join a sequence any more."""
        sequence.is_over = True
        if self._sequences.get(sequence.id) is sequence:
            del self._sequences[sequence.id]

    def _rest(self, sequence: _Sequence) -> None:
        """Give the place away if the sequence is over, else watch how long it is idle."""
        if sequence.requests:
            return
        if not sequence.is_over:
            loop = asyncio.get_running_loop()
            sequence.idle = loop.call_later(self._plan.idle_s, self._abandon, sequence)
            return
        if sequence.idle is not None:
            sequence.idle.cancel()
        if sequence in self._backlog:
            self._backlog.remove(sequence)
        elif self._backlog:
            place = self._backlog.popleft().place
            if place is not None:
                place.set_result(None)
        else:
            self._taken -= 1

    def _abandon(self, sequence: _Sequence) -> None:
        self._forget(sequence)
        self._rest(sequence)
