"""How long a connection may live: handshake, keepalive, idleness, age, and a drain that loses none.

A drain has two steps (RFC 9113 section 6.8). The first GOAWAY names the highest id there is, so no
stream already on its way is lost; a PING goes with it. When its answer is back, everything sent
before the peer knew has arrived, and the second GOAWAY names the last stream that was taken.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from servery_h2 import frames
from servery_h2.faults import calm
from servery_h2.frames import ErrorCode
from servery_h2.limits import Limits

if TYPE_CHECKING:
    from servery_h2.connection import Connection

_DRAIN_PING: Final = b"goodbye!"
_KEEPALIVE_PING: Final = b"alive???"
_FINAL_GOAWAY_S: Final = 1.0  # A peer that does not answer the PING gets the second GOAWAY anyway.


class Lifecycle:
    """Watches one connection by the clock; `tick` is called about once a second."""

    def __init__(self, connection: Connection, limits: Limits, now: float) -> None:
        self._connection = connection
        self._limits = limits
        self._born = now
        self._heard = now
        self._idle_since = now
        self._asked: float | None = None
        self._age_s = limits.max_age_s * random.uniform(0.9, 1.1)  # noqa: S311 (spreads reconnects)
        self._pinged_at = float("-inf")
        self._useful_at_ping = 0
        self._strikes = 0
        self._draining_since: float | None = None
        self._grace_s = float("inf")
        self.draining = False
        """The peer was told to open no more streams."""
        self.greeted = False
        """The preface and the SETTINGS of the peer came."""
        self.last_accepted = frames.MAX_STREAM_ID
        """Streams above it are ignored: the peer was told so."""

    def heard(self, now: float) -> None:
        """Something came."""
        self._heard = now
        self._asked = None

    def tick(self, now: float) -> None:
        """Do what is due."""
        connection, limits = self._connection, self._limits
        if not self.greeted:
            if now - self._born > limits.handshake_s:
                connection.abort()
            return
        if self._asked is not None:
            if now - self._asked > limits.keepalive_timeout_s:
                connection.abort()
                return
        elif now - self._heard > limits.keepalive_s:
            self._asked = now
            connection.out.put(frames.ping(_KEEPALIVE_PING))
        if connection.streams:
            self._idle_since = now
        if self._draining_since is None:
            if now - self._born > self._age_s:
                self.drain(now, limits.max_age_grace_s)
            elif now - self._idle_since > limits.max_idle_s:
                self.drain(now, 0)
        elif now - self._draining_since > self._grace_s + _FINAL_GOAWAY_S:
            connection.shut()
        elif now - self._draining_since > _FINAL_GOAWAY_S:
            self._refuse_more()

    def drain(self, now: float, grace_s: float) -> None:
        """Tell the peer to go; the connection closes when its last stream ends."""
        if self._draining_since is not None:
            return
        self.draining = True
        self._draining_since = now
        self._grace_s = grace_s
        out = self._connection.out
        out.put(frames.goaway(frames.MAX_STREAM_ID, ErrorCode.NO_ERROR))
        out.put(frames.ping(_DRAIN_PING))

    def on_ping_ack(self, payload: bytes) -> None:
        """An answer came to a PING, of ours or not."""
        if payload == _DRAIN_PING and self._draining_since is not None:
            self._refuse_more()

    def on_ping(self, now: float, useful: int) -> None:
        """The peer pings.

        Args:
            now: When.
            useful: Frames of calls sent to it so far.

        Raises:
            H2ConnectionError: It does so too often while nothing is sent to it.
        """
        limits = self._limits
        if useful == self._useful_at_ping and now - self._pinged_at < limits.min_ping_interval_s:
            self._strikes += 1
            if limits.max_ping_strikes and self._strikes > limits.max_ping_strikes:
                raise calm("too_many_pings")
        else:
            self._strikes = 0
        self._pinged_at = now
        self._useful_at_ping = useful

    def _refuse_more(self) -> None:
        connection = self._connection
        if self.last_accepted == frames.MAX_STREAM_ID:
            self.last_accepted = connection.last_id
            connection.out.put(frames.goaway(self.last_accepted, ErrorCode.NO_ERROR))
        connection.close_if_done()
