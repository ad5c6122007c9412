"""A closed-loop load of unary gRPC calls that costs little: HTTP/2 frames made once, sent again.

`python bench/transport_load.py ADDRESS --connections C --streams M --bytes N --seconds S` prints
one line of JSON. Behaves as a busy client does: header blocks are indexes into the dynamic table,
one write per turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import time
from collections.abc import Iterator
from typing import cast

import uvloop
from hpack import Encoder

from servery_h2 import frames

FIELDS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/bench.Echo/Unary"),
    (":authority", "127.0.0.1"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("user-agent", "transport-load/1"),
    ("grpc-accept-encoding", "identity, deflate, gzip"),
]
_WINDOW = 1 << 30


class Load(asyncio.Protocol):
    """One connection that keeps `streams` calls open until `end`.

    Args:
        streams: Calls at once.
        body: The message of each.
        end: When the last calls begin, by `time.perf_counter`.
        fields: The header of each.
        pause_s: From the answer of a call to the next one.
    """

    def __init__(
        self,
        streams: int,
        body: bytes,
        end: float,
        fields: list[tuple[str, str]] = FIELDS,
        pause_s: float = 0.0,
    ) -> None:
        self.latencies_s: list[float] = []
        self.failed = 0
        self._loop = asyncio.get_running_loop()
        self.done = self._loop.create_future()
        self._pause_s = pause_s
        self._streams = streams
        self._message = b"\0" + len(body).to_bytes(4) + body
        self._end = end
        self._fields = fields
        self._encoder = Encoder()
        self._next_id = 1
        self._began: dict[int, float] = {}
        self._rest = b""
        self._window = frames.DEFAULT_WINDOW
        self._max_frame = frames.DEFAULT_MAX_FRAME
        self._stream_window = frames.DEFAULT_WINDOW
        self._left: dict[int, list[int]] = {}  # What was sent of a message, and its window.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet; the calls begin when the server has told its windows."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(
            frames.PREFACE
            + frames.settings({frames.INITIAL_WINDOW_SIZE: _WINDOW})
            + frames.window_update(0, _WINDOW)
        )

    def data_received(self, data: bytes) -> None:
        """Count the calls that ended and begin as many."""
        data = self._rest + data
        at, end, out = 0, len(data), []
        now = time.perf_counter()
        while end - at >= 9:
            high, low, kind, flags, stream_id = frames.FRAME_HEADER.unpack_from(data, at)
            stop = at + 9 + (high << 8 | low)
            if stop > end:
                break
            if kind == frames.HEADERS and flags & frames.END_STREAM:
                self.latencies_s.append(now - self._began.pop(stream_id))
                if self._pause_s:
                    self._loop.call_later(self._pause_s, self._after_pause)
                elif now < self._end:
                    out.append(self._request())
            elif kind != frames.DATA:
                out.append(self._control(kind, flags, stream_id, data[at + 9 : stop]))
            at = stop
        self._rest = data[at:]
        reply = b"".join(out)
        if reply:
            self._transport.write(reply)
        self._stop_at_end(now)

    def _after_pause(self) -> None:
        now = time.perf_counter()
        if now < self._end and not self._transport.is_closing():
            self._transport.write(self._request())
        self._stop_at_end(now)

    def _stop_at_end(self, now: float) -> None:
        if not self._began and now >= self._end and self._next_id > 1 and not self.done.done():
            self.done.set_result(None)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count what was not answered."""
        self.failed += len(self._began)
        if not self.done.done():
            self.done.set_result(None)

    def _control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
        if kind == frames.SETTINGS and not flags & frames.ACK:
            for at in range(0, len(payload), 6):
                value = int.from_bytes(payload[at + 2 : at + 6])
                key = int.from_bytes(payload[at : at + 2])
                if key == frames.MAX_FRAME_SIZE:
                    self._max_frame = value
                elif key == frames.INITIAL_WINDOW_SIZE:
                    self._stream_window = value
            ack = frames.frame(frames.SETTINGS, frames.ACK, 0)
            return ack + (b"" if self._began else self._begin())
        if kind == frames.PING and not flags & frames.ACK:
            return frames.ping(payload, ack=True)
        if kind == frames.WINDOW_UPDATE:
            if stream_id == 0:
                self._window += int.from_bytes(payload)
            elif stream_id in self._left:
                self._left[stream_id][1] += int.from_bytes(payload)
            return b"".join(self._body(one) for one in list(self._left))
        if kind in (frames.GOAWAY, frames.RST_STREAM):
            self.failed += 1
        return b""

    def _begin(self) -> bytes:
        self._block = self._encoder.encode(self._fields)
        first = self._request()
        self._block = self._encoder.encode(self._fields)  # Indexes from now on.
        return first + b"".join(self._request() for _ in range(1, self._streams))

    def _request(self) -> bytes:
        stream_id = self._next_id
        self._next_id += 2
        self._began[stream_id] = time.perf_counter()
        self._left[stream_id] = [0, self._stream_window]
        head = frames.headers(stream_id, self._block, 1 << 14, end_stream=False)
        return head + self._body(stream_id)

    def _body(self, stream_id: int) -> bytes:
        """Frame what is left of the message as far as the windows go."""
        parts = []
        at, window = self._left[stream_id]
        while at < len(self._message):
            size = min(len(self._message) - at, self._max_frame, self._window, window)
            if size <= 0:
                break
            self._window -= size
            window -= size
            last = at + size == len(self._message)
            flags = frames.END_STREAM if last else 0
            parts.append(frames.frame(frames.DATA, flags, stream_id, self._message[at : at + size]))
            at += size
        if at == len(self._message):
            del self._left[stream_id]
        else:
            self._left[stream_id] = [at, window]
        return b"".join(parts)


def quantiles(latencies_s: list[float]) -> Iterator[float]:
    """Yield median and 99th percentile, in microseconds."""
    ordered = sorted(latencies_s)
    for part in (0.5, 0.99):
        yield round(ordered[int(part * (len(ordered) - 1))] * 1e6, 1) if ordered else 0.0


async def load(args: argparse.Namespace) -> None:
    """Run the load and print what it saw."""
    loop = asyncio.get_running_loop()
    host, _, port = args.address.rpartition(":")
    tls = None
    if args.ca:
        tls = ssl.create_default_context(cafile=args.ca)
        tls.set_alpn_protocols(["h2"])
    end = time.perf_counter() + args.seconds
    body = bytes(args.bytes)
    loads = [
        (
            await loop.create_connection(
                lambda: Load(args.streams, body, end, pause_s=args.pause_s),
                host,
                int(port),
                ssl=tls,
            )
        )[1]
        for _ in range(args.connections)
    ]
    await asyncio.wait([one.done for one in loads], timeout=args.seconds + 5)
    latencies_s = [latency for one in loads for latency in one.latencies_s]
    p50_us, p99_us = quantiles(latencies_s)
    print(
        json.dumps(
            {
                "requests": len(latencies_s),
                "failed": sum(one.failed for one in loads),
                "per_s": round(len(latencies_s) / args.seconds),
                "p50_us": p50_us,
                "p99_us": p99_us,
            }
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="host:port")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--streams", type=int, default=1, help="calls at once per connection")
    parser.add_argument("--bytes", type=int, default=3_136, help="size of a request message")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--pause-s", type=float, default=0.0, help="before the next call")
    parser.add_argument("--ca", help="verify TLS against this; without it, no TLS")
    uvloop.run(load(parser.parse_args()))
