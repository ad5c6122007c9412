"""The short way: plain requests to short models that are idle, without a task or a future.

What comes in one turn of the event loop is run together: forming a batch costs a request less than
a run of its own. All that is not plain, has to wait or is refused is left to the general way.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, auto
from operator import attrgetter
from typing import Any, Final

from servery_inference.access import MODEL_HEADER, TIMING_HEADER, may
from servery_inference.batch import NotRowWiseError
from servery_inference.costs import SHORT_S
from servery_inference.forms import Form, PlainRequest, Reply
from servery_inference.in_flight import LIMITS_HEADER, InFlight
from servery_inference.known_forms import MAX_BYTES, KnownForms
from servery_inference.metering import USAGE_HEADER, usage_text
from servery_inference.repository import Repository
from servery_rpc.errors import ServeryError
from servery_rpc.identity import CLAIMS_HEADER, caller_from

_COMPANY_TURNS: Final = 8
_PROBED: Final = 8
"""Of so many requests that come alone, one looks whether the others of its turn do."""

_ASKING: Final = frozenset((CLAIMS_HEADER, LIMITS_HEADER, MODEL_HEADER, TIMING_HEADER))
"""Metadata that decides about a call, or asks for more than an answer."""

_arrival_ns: Final = attrgetter("arrival_ns")

log = logging.getLogger(__name__)


class Way(Enum):
    """What becomes of a request that is not answered at once."""

    GENERAL = auto()
    """Nothing was done."""

    LATER = auto()
    """Its answer is delivered at the end of this turn of the event loop, or of one soon after."""


class Express:
    """Answers plain requests. For one event loop.

    Args:
        repository: The models.
        in_flight: Counts what the general way answers.
    """

    def __init__(self, repository: Repository, in_flight: InFlight) -> None:
        self._in_flight = in_flight
        self._forms = KnownForms(repository)
        self._unasking: object = None
        """Metadata, of the last call that had none of `_ASKING`."""
        self._turn: dict[Form, list[PlainRequest]] = {}
        self._in_turn = 0
        self._until_probe = 0
        self._company = 0
        self._is_behind = False

    def answer(
        self,
        message: bytes,
        metadata: Iterable[tuple[str, Any]],
        deadline: float | None,
        deliver: Callable[[Reply | None], None],
    ) -> Reply | Way:
        """Answer a serialized `ModelInferRequest`, or say what becomes of it.

        Args:
            message: The request.
            metadata: Of its call.
            deadline: When its caller stops waiting, by `time.monotonic`; None for never.
            deliver: Gets the answer if it comes later, or None for the general way.
        """
        arrival = time.perf_counter_ns()
        recognised = self._forms.recognise(message)
        if recognised is None:
            return Way.GENERAL
        form, request_id, places = recognised
        if self._is_behind or form.is_large:
            return Way.GENERAL
        is_metered = False
        if metadata is not self._unasking:
            asked = {key: value for key, value in metadata if key in _ASKING}
            if not asked:
                self._unasking = metadata  # The calls of one client often share it.
            elif not self._admits(asked, form.model):
                return Way.GENERAL
            is_metered = bool(asked)
        request = PlainRequest(message, places, request_id, arrival, deadline, is_metered, deliver)
        self._count()
        if self._company and form.servable.joins_unasked:
            self._turn.setdefault(form, []).append(request)
            return Way.LATER
        replies = _run(form, (request,))
        return Way.GENERAL if replies is None else replies[0]

    def _admits(self, asked: Mapping[str, Any], model: str) -> bool:
        """Tell whether a call came through the gateway, and may be answered."""
        claims, limits = asked.get(CLAIMS_HEADER), asked.get(LIMITS_HEADER)
        if claims is None or TIMING_HEADER in asked or asked.get(MODEL_HEADER, model) != model:
            return False
        if limits is not None and not self._in_flight.has_room(limits):
            return False
        try:
            return may(caller_from(claims), ("infer",), model)
        except (ValueError, KeyError):
            return False

    def _count(self) -> None:
        """Count a request of this turn of the event loop, if its end is to be looked at."""
        self._until_probe -= 1
        if self._in_turn:
            self._in_turn += 1
            self._company = _COMPANY_TURNS
        elif self._company or self._until_probe < 0:
            self._until_probe = _PROBED
            self._in_turn = 1
            asyncio.get_running_loop().call_soon(self._end_turn)

    def _end_turn(self) -> None:
        """Run what waited for company; forget the company if there was none for long."""
        if self._in_turn == 1 and self._company:
            self._company -= 1
        self._in_turn = 0
        turn, self._turn = self._turn, {}
        self._run_all(turn)

    def _run_all(self, turn: dict[Form, list[PlainRequest]]) -> None:
        until = time.perf_counter() + SHORT_S
        while turn:
            form, requests = next(iter(turn.items()))
            most = min(len(requests), max(1, MAX_BYTES // len(requests[0].message)))
            count = form.servable.joinable(most, form.rows, form.size)
            together, turn[form] = requests[:count], requests[count:]
            if not turn[form]:
                del turn[form]
            replies: Sequence[Reply | None] = _run(form, together) or [None] * count
            for request, reply in zip(together, replies, strict=True):
                request.deliver(reply)
            self._is_behind = bool(turn) and time.perf_counter() > until
            if self._is_behind:  # Others get the event loop in between.
                asyncio.get_running_loop().call_soon(self._run_all, turn)
                return


def _run(form: Form, requests: Sequence[PlainRequest]) -> Sequence[Reply] | None:
    """Answer requests of one form in one run; None if that cannot be."""
    deadline = None
    for each in requests:
        if each.deadline is not None and (deadline is None or each.deadline < deadline):
            deadline = each.deadline
    try:
        run = form.servable.infer_now(
            form.feed(requests),
            form.outputs,
            tuple(map(_arrival_ns, requests)),
            form.rows,
            form.size * len(requests),
            deadline,
        )
        if run is None:
            return None
        messages = form.render(requests, run.values)
        form.is_large = len(messages[0]) > MAX_BYTES
    except (ServeryError, NotRowWiseError):
        return None
    except Exception:  # A bug; it must not keep others of the turn from their answers.
        log.exception("the short way failed for model %s", form.model)
        return None
    replies: list[Reply] = []
    for message, request in zip(messages, requests, strict=True):
        compute_ns = run.compute_infer_ns // len(requests)
        replies.append((message, _usage(form, compute_ns) if request.is_metered else ()))
    return replies


def _usage(form: Form, compute_ns: int) -> tuple[tuple[str, str], ...]:
    return ((USAGE_HEADER, usage_text(form.servable.version, form.rows, compute_ns)),)
