"""What grows from the bytes of real clients is answered or refused, and agrees with hpack.

`corpus/grpcio_*.h2` is what clients of grpcio 1.85 sent on one connection each, to methods of
`/echo.Echo`; `made_*.h2` are frames that no client of ours sends.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hpack import Decoder

from servery_h2 import frames
from servery_h2.faults import H2ConnectionError
from servery_h2.header_block import Fields, HeaderReader
from tests.h2.test_frames import connection
from tests.mutations import mutations

SEEDS = [path.read_bytes() for path in sorted((Path(__file__).parent / "corpus").glob("*.h2"))]
FUZZ_S = 3.0
GREETING_BYTES = len(frames.PREFACE)


def split(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, flags and payload of each whole frame."""
    at = 0
    while len(data) - at >= frames.FRAME_HEADER_BYTES:
        high, low, kind, flags, _ = frames.FRAME_HEADER.unpack_from(data, at)
        at += frames.FRAME_HEADER_BYTES
        yield kind, flags, data[at : at + (high << 8 | low)]
        at += high << 8 | low
    assert at == len(data)


def feed(data: bytes, rng: random.Random) -> bytes:
    """Give `data` to a connection, in parts; return what it sent."""
    loop = asyncio.new_event_loop()
    errors: list[Any] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    try:
        made, transport = connection(loop)
        at = 0
        while at < len(data) and not transport.closed:
            size = rng.choice([1, 9, 60, len(data)])
            made.data_received(data[at : at + size])
            at += size
        loop.run_until_complete(asyncio.sleep(0))
        made.connection_lost(None)
        assert not errors
        assert not made.streams
        assert made.host.memory.held == 0
        return b"".join(transport.written)
    finally:
        loop.close()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)


def test_clients_are_answered() -> None:
    answered = sum(
        any(kind == frames.HEADERS for kind, _, _ in split(feed(seed, random.Random(0))))  # noqa: S311
        for seed in SEEDS
    )
    assert answered == len(SEEDS) > 5


def test_what_grew_from_clients_is_answered_or_refused() -> None:
    rng = random.Random(0)  # noqa: S311  no secret
    end = time.monotonic() + FUZZ_S
    answered = refused = 0
    for data in mutations([seed[GREETING_BYTES:] for seed in SEEDS], rng):
        sent = list(split(feed(frames.PREFACE + data, rng)))
        kinds = {kind for kind, _, _ in sent}
        answered += frames.HEADERS in kinds
        refused += frames.GOAWAY in kinds
        if time.monotonic() > end:
            break
    assert answered > 20
    assert refused > 20


def test_header_blocks_that_grew_from_clients_mean_what_hpack_says() -> None:
    blocks = [
        payload
        for seed in SEEDS
        for kind, flags, payload in split(seed[GREETING_BYTES:])
        if kind == frames.HEADERS and not flags & (frames.PADDED | frames.PRIORITIZED)
    ]
    grown = mutations(blocks, random.Random(0))  # noqa: S311  no secret
    end = time.monotonic() + FUZZ_S
    read = refused = 0
    while time.monotonic() < end:
        decoder, reader = Decoder(1 << 16), HeaderReader[Fields](1 << 16, lambda fields: fields)
        for _ in range(20):
            block = next(grown)
            try:
                expected = [tuple(pair) for pair in decoder.decode(block, raw=True)]
            except Exception:
                refused += 1
                with pytest.raises(H2ConnectionError):
                    reader.read(block)
                break
            assert reader.read(block) == expected
            read += 1
    assert read > 100
    assert refused > 20
