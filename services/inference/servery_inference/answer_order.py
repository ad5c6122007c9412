"""Gives requests their outcomes: as soon as they are known, or in the order of arrival."""

from collections import deque

from servery_inference.queueing import Work
from servery_inference.runner import Result


class AnswerOrder:
    """Answers works. For one event loop.

    Args:
        is_kept: Whether answers come in the order of the requests.
    """

    def __init__(self, is_kept: bool) -> None:  # noqa: FBT001  it is all there is to say
        self._is_kept = is_kept
        self._open: deque[Work] = deque()

    def __bool__(self) -> bool:
        """Tell whether a work must be answered before one that comes now."""
        return bool(self._open)

    def join(self, work: Work) -> None:
        """Put a work behind all that came before it."""
        if self._is_kept:
            self._open.append(work)

    def settle(self, work: Work, outcome: Result | Exception) -> None:
        """Answer a work; where order counts, after those before it."""
        if not self._is_kept:
            _resolve(work, outcome)
            return
        work.outcome = outcome
        self.release()

    def release(self) -> None:
        """Answer the works that wait for nobody any more."""
        while self._open and (self._open[0].outcome is not None or self._open[0].future.done()):
            work = self._open.popleft()
            if work.outcome is not None:
                _resolve(work, work.outcome)


def _resolve(work: Work, outcome: Result | Exception) -> None:
    if work.future.done():
        return
    if isinstance(outcome, Exception):
        work.future.set_exception(outcome)
    else:
        work.future.set_result(outcome)
