"""What one peer may cost: sizes, counts, rates and patience."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from servery_h2.faults import calm
from servery_h2.frames import MAX_WINDOW

_CONTROL_PER_USEFUL: Final = 4  # Peers answer our frames with PING and WINDOW_UPDATE.
_RESETS_PER_CALL: Final = 0.5  # Honest callers give up on some calls; an attacker resets all.


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a server. Every bound holds per connection unless it says otherwise."""

    max_receive_message_bytes: int = 4 << 20
    """Largest request message, after decompression."""

    max_send_message_bytes: int = MAX_WINDOW
    """Largest response message, before compression."""

    max_header_list_bytes: int = 16 << 10
    """Largest request header list as RFC 9113 counts it; above it a call is RESOURCE_EXHAUSTED,
    above four times it the connection is closed."""

    max_concurrent_streams: int = 128
    """Calls open at once; more are refused and may be retried."""

    max_connections: int = 10_000
    """Connections of the whole server; more are closed at once."""

    stream_window_bytes: int = 1 << 20
    """Request bytes of one call that may wait for its handler."""

    connection_window_bytes: int = 16 << 20
    """Request bytes of all calls that may be on their way at once."""

    max_buffered_bytes: int = 256 << 20
    """Request bytes of all calls in memory; beyond it the peer gets no window until some go."""

    reset_burst: int = 500
    """Streams that may be reset at once (rapid reset), refilled by `reset_rate`, and by every
    second call."""

    reset_rate: float = 50.0
    """Resets per second that are never held against the peer."""

    reset_patience_s: float = 0.05
    """Resets of calls whose caller waited that long are never held against it: how many it can
    wait for is bounded by `max_concurrent_streams`."""

    control_burst: int = 2_000
    """Frames without use that may come at once: SETTINGS, PING, PRIORITY, WINDOW_UPDATE, unknown
    ones, and DATA of a few bytes. Refilled by `control_rate` and by every useful frame."""

    control_rate: float = 200.0
    """Frames without use per second that are never held against the peer."""

    max_continuations: int = 32
    """CONTINUATION frames of one header block."""

    max_control_backlog_bytes: int = 256 << 10
    """Answers to control frames that may wait for a peer that does not read."""

    min_ping_interval_s: float = 5.0
    """PINGs that come faster, with nothing sent in between, are strikes."""

    max_ping_strikes: int = 2
    """Strikes after which the connection is closed with `too_many_pings`; 0 allows any."""

    keepalive_s: float = 7200.0
    """Silence after which the server pings."""

    keepalive_timeout_s: float = 20.0
    """How long the answer to that PING may take."""

    handshake_s: float = 10.0
    """How long a new connection may take for TLS, and again for its preface and SETTINGS."""

    stall_s: float = 60.0
    """How long a call may make no progress while the peer owes bytes or window."""

    max_age_s: float = float("inf")
    """Age, give or take a tenth, at which a connection is told to go; its calls may finish."""

    max_age_grace_s: float = 60.0
    """How long calls may go on after that."""

    max_idle_s: float = float("inf")
    """How long a connection may be without calls before it is told to go."""


class Budget:
    """A token bucket: `spend` is free while the peer behaves, and never needs the clock then.

    Args:
        burst: Tokens at most, and at first.
        rate: Tokens that come back per second.
        clock: Monotonic seconds.
    """

    __slots__ = ("_at", "_burst", "_clock", "_left", "_rate")

    def __init__(self, burst: int, rate: float, clock: Callable[[], float]) -> None:
        self._burst = burst
        self._rate = rate
        self._clock = clock
        self._left = float(burst)
        self._at = clock()

    def spend(self) -> bool:
        """Take a token; False when there is none."""
        if self._left < 1:
            now = self._clock()
            self.earn((now - self._at) * self._rate)
            self._at = now
            if self._left < 1:
                return False
        self._left -= 1
        return True

    def earn(self, tokens: float) -> None:
        """Give tokens back, up to the burst."""
        self._left = min(self._left + tokens, self._burst)


class Tolerance:
    """What a connection puts up with from its peer.

    Args:
        limits: How much.
        clock: Monotonic seconds.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._resets = Budget(limits.reset_burst, limits.reset_rate, clock)
        self._control = Budget(limits.control_burst, limits.control_rate, clock)
        self._calls = 0
        self._expected = 0
        self._useful = 0

    def spend_control(self, useful: int) -> None:
        """Count a frame without use.

        Args:
            useful: Frames of calls sent to the peer so far; each pays for a few.

        Raises:
            H2ConnectionError: There were too many.
        """
        if self._control.spend():
            return
        self._control.earn(_CONTROL_PER_USEFUL * (useful - self._useful))
        self._useful = useful
        if not self._control.spend():
            raise calm("too many control frames")

    def spend_reset(self, calls: int) -> None:
        """Count a reset stream.

        Args:
            calls: Calls the peer has begun so far; each pays for a part of a reset.

        Raises:
            H2ConnectionError: There were too many.
        """
        if self._expected:
            self._expected -= 1
            return
        if self._resets.spend():
            return
        self._resets.earn(_RESETS_PER_CALL * (calls - self._calls))
        self._calls = calls
        if not self._resets.spend():
            raise calm("too many resets")

    def expect_reset(self) -> None:
        """The deadline of a call passed here, as it does at the peer: one reset is not counted."""
        self._expected += 1
