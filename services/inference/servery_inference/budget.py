"""One account of processor cores and one of memory, for all models of the process."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from servery_inference.engine import LoadFailedError

P = ParamSpec("P")
T = TypeVar("T")


class ThreadBudget:
    """Lets runs begin only while cores are free for all their threads. For any thread.

    Args:
        cores: What this process may use.
    """

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._free = cores
        self._changed = threading.Condition()
        self._last_ticket = 0
        self._now_serving = 1

    @contextmanager
    def taking(self, num_threads: int) -> Iterator[None]:
        """Wait for the turn, hold that many cores for the length of the block.

        First come, first served, so that wide runs are not starved by narrow ones.
        """
        wanted = min(num_threads, self._cores)
        with self._changed:
            self._last_ticket += 1
            ticket = self._last_ticket
            self._changed.wait_for(lambda: self._now_serving == ticket and self._free >= wanted)
            self._free -= wanted
            self._now_serving += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()


class BudgetedExecutor(Executor):
    """Runs work on the threads of another executor, each counted as several cores."""

    def __init__(self, executor: Executor, budget: ThreadBudget, num_threads: int) -> None:
        self._executor = executor
        self._budget = budget
        self._num_threads = num_threads

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See `Executor`."""

        def run() -> T:
            with self._budget.taking(self._num_threads):
                return fn(*args, **kwargs)

        return self._executor.submit(run)


class MemoryLedger:
    """What the models in memory were accounted with. For any thread.

    Args:
        limit_bytes: Of all together; None for no limit.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """The sum of what is reserved."""
        return self._used_bytes

    def reserve(self, needed_bytes: int) -> None:
        """Account for a model that is about to be loaded.

        Raises:
            LoadFailedError: It would not fit.
        """
        with self._lock:
            limit = self._limit_bytes
            if limit is not None and self._used_bytes + needed_bytes > limit:
                raise LoadFailedError(
                    f"it needs about {needed_bytes} bytes of memory, but of the {limit} that models"
                    f" may use {max(0, limit - self._used_bytes)} are free; unload others, or raise"
                    " --model-memory-limit-bytes"
                )
            self._used_bytes += needed_bytes

    def release(self, reserved_bytes: int) -> None:
        """Take back what was reserved."""
        with self._lock:
            self._used_bytes -= reserved_bytes
