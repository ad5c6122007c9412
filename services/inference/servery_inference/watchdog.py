"""Bounds how long a run of a model may hold the event loop.

Speed is measured at warm-up, but values may decide how often a graph loops. So a run on the event
loop that overstays is ended from outside, and the caller repeats it where it disturbs nobody.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Self, TypeVar

import onnxruntime as ort

LIMIT_S: Final = 0.05

T = TypeVar("T")


class Watchdog:
    """Watches the runs of one thread, one at a time.

    Args:
        limit_s: After how long a run is ended, within twice that time if it has the processor.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._options = ort.RunOptions()
        self._is_ended = False
        self._since: float | None = None
        self._clock: int | None = None
        self._ending = threading.Lock()
        self._stop = threading.Event()

    @classmethod
    @contextmanager
    def watching(cls, limit_s: float = LIMIT_S) -> Iterator[Self]:
        """Watch for the length of the block."""
        watchdog = cls(limit_s)
        thread = threading.Thread(target=watchdog._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield watchdog
        finally:
            watchdog._stop.set()
            thread.join()

    def watch(self, run: Callable[..., T], *arguments: Any) -> T:
        """Call `run` with `arguments`, and then options that end it when it overstays."""
        if self._is_ended:
            self._options.terminate = self._is_ended = False
        if self._clock is None:
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._since = time.monotonic()
        try:
            return run(*arguments, self._options)
        finally:
            with self._ending:  # Or the next run would be ended for this one.
                self._since = None

    def _watch(self) -> None:
        seen: float | None = None
        used_s = 0.0
        while not self._stop.wait(self._limit_s):
            since, clock = self._since, self._clock
            if since is None or clock is None:
                continue
            now_s = time.clock_gettime(clock)
            if since != seen:
                seen, used_s = since, now_s
            elif now_s - used_s > self._limit_s / 2:
                with self._ending:
                    if self._since == since:
                        self._options.terminate = self._is_ended = True
