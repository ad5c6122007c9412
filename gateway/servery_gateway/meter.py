"""Meters calls: from what Envoy tells to sums on disk and in Prometheus."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Final

from prometheus_client import Counter

from servery_gateway.background import in_thread
from servery_gateway.usage import Call, known_only, minute_of
from servery_gateway.usage_store import UsageStore
from servery_rpc.errors import DependencyUnavailableError

log = logging.getLogger(__name__)

WRITE_EVERY_S: Final = 0.5
_MAX_PENDING: Final = 1_000_000
"""Calls held while the database cannot be written; some 1 GB."""

_LABELS: Final = ("tenant", "model", "code")
_CALLS: Final = Counter("servery_gateway_calls_total", "Calls that Envoy answered", _LABELS)
_REQUEST_BYTES: Final = Counter(
    "servery_gateway_request_bytes_total", "Bytes that callers sent, without headers", _LABELS
)
_RESPONSE_BYTES: Final = Counter(
    "servery_gateway_response_bytes_total", "Bytes that callers got, without headers", _LABELS
)
_SECONDS: Final = Counter(
    "servery_gateway_call_seconds_total", "Time from the first byte of calls to the last", _LABELS
)
_ROWS: Final = Counter("servery_gateway_rows_total", "Rows of inference", _LABELS)
_COMPUTE_SECONDS: Final = Counter(
    "servery_gateway_compute_seconds_total", "Time that models ran for calls", _LABELS
)
_DROPPED: Final = Counter(
    "servery_gateway_calls_dropped_total", "Calls that were never counted: no database for too long"
)


class Meter:
    """Counts calls. Belongs to one event loop.

    Args:
        store: Where they are counted.
        now: Returns the time.
    """

    def __init__(
        self,
        store: UsageStore,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._now = now
        self._pending: dict[bytes, Call] = {}
        self._answered: set[str] | None = None
        self._writing = asyncio.Lock()

    def record(self, calls: Iterable[Call]) -> None:
        """Take in calls; they are on disk at most `WRITE_EVERY_S` and one write later."""
        for call in calls:
            if len(self._pending) >= _MAX_PENDING:
                _DROPPED.inc()
            else:
                self._pending.setdefault(call.id, call)

    async def run(self) -> None:
        """Write again and again, until cancelled."""
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            with suppress(DependencyUnavailableError):
                await self.write()

    async def write(self) -> None:
        """Write what was taken in.

        Raises:
            DependencyUnavailableError: The database cannot be written. What was taken in is kept.
        """
        async with self._writing:
            if not self._pending:
                return
            taken, self._pending = self._pending, {}
            try:
                fresh = await in_thread(self._add, list(taken.values()))
            except DependencyUnavailableError as error:
                self._pending = {**taken, **self._pending}
                log.error("usage of %d calls waits for the database: %s", len(taken), error)
                raise
        for call in fresh:
            _observe(call)

    def _add(self, calls: list[Call]) -> list[Call]:
        if self._answered is None:
            self._answered = self._store.answered_models()
        self._answered |= {call.bill.model for call in calls if call.model_answered}
        known = [known_only(call, self._answered) for call in calls]
        return self._store.add(known, minute_of(self._now()))


@asynccontextmanager
async def metering(meter: Meter) -> AsyncIterator[None]:
    """Keep writing inside the block; write what is left when it is left."""
    writing = asyncio.create_task(meter.run())
    try:
        yield
    finally:
        writing.cancel()
        with suppress(asyncio.CancelledError):
            await writing
        with suppress(DependencyUnavailableError):  # It is in the log.
            await meter.write()


def _observe(call: Call) -> None:
    labels = (call.bill.tenant, call.bill.model, str(call.bill.code))
    _CALLS.labels(*labels).inc(call.sums.requests)
    _REQUEST_BYTES.labels(*labels).inc(call.sums.request_bytes)
    _RESPONSE_BYTES.labels(*labels).inc(call.sums.response_bytes)
    _SECONDS.labels(*labels).inc(call.sums.duration_us / 1e6)
    _ROWS.labels(*labels).inc(call.sums.rows)
    _COMPUTE_SECONDS.labels(*labels).inc(call.sums.compute_ns / 1e9)
