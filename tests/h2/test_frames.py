"""Whatever bytes come, the server answers or closes; it never fails and keeps nothing."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servery_h2 import Limits, frames
from servery_h2.connection import Connection
from servery_h2.host import Host, Memory
from servery_h2.messages import MessageReader
from servery_h2.methods import Methods
from tests.h2.wire import ECHO, call, data, message, request

GREETING = frames.PREFACE + frames.settings({})

WHOLE = st.builds(
    frames.frame,
    st.integers(0, 11),
    st.sampled_from([0, 1, 4, 5, 8, 9, 0x20, 0x2D, 0xFF]),
    st.sampled_from([0, 1, 1, 3, 2, 5, 2**31 - 1]),
    st.binary(max_size=30) | st.just(bytes(5)) | st.just(message(b"hello")),
)
USEFUL = st.sampled_from(
    [call(1), request(1), data(1, message(b"x")), call(3), request(3), frames.window_update(1, 5)]
)


class _Transport(asyncio.Transport):
    """Remembers what was written, as a socket nobody reads would."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


def connection(loop: asyncio.AbstractEventLoop) -> tuple[Connection, _Transport]:
    methods = Methods(())
    methods.add_raw(ECHO, lambda body, _: body)
    made = Connection(Host(methods, Limits(), Memory(1 << 20)), loop)
    transport = _Transport()
    made.connection_made(transport)
    return made, transport


@given(st.lists(USEFUL | WHOLE | st.binary(max_size=20), max_size=12), st.integers(1, 60))
@settings(max_examples=400, deadline=None)
def test_any_frames_are_answered_or_refused(parts: list[bytes], cut: int) -> None:
    loop = asyncio.new_event_loop()
    errors: list[Any] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    logging.disable(logging.INFO)
    try:
        made, transport = connection(loop)
        everything = GREETING + b"".join(parts)
        for at in range(0, len(everything), cut):
            made.data_received(everything[at : at + cut])
            if transport.closed:
                break
        loop.run_until_complete(asyncio.sleep(0))
        made.connection_lost(None)
        assert not errors
        assert not made.streams
        assert made.host.memory.held == 0
    finally:
        logging.disable(logging.NOTSET)
        loop.close()


@given(st.lists(st.binary(max_size=50), max_size=8), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_messages_come_out_as_they_went_in(messages: list[bytes], cut: int) -> None:
    reader = MessageReader("identity", 100)
    wire = b"".join(message(body) for body in messages)
    out = []
    for at in range(0, len(wire), cut):
        out += reader.feed(memoryview(wire)[at : at + cut])
    assert [reader.plain(packed) for packed in out] == messages
    assert not reader.inside


@pytest.mark.parametrize("cut", [1, 7, 1_000])
def test_how_input_is_cut_changes_nothing_that_is_sent(cut: int) -> None:
    loop = asyncio.new_event_loop()
    try:
        made, transport = connection(loop)
        everything = GREETING + b"".join(call(stream_id) for stream_id in range(1, 41, 2))
        for at in range(0, len(everything), cut):
            made.data_received(everything[at : at + cut])
        whole, expected = connection(loop)
        whole.data_received(everything)
        assert b"".join(transport.written) == b"".join(expected.written)
    finally:
        loop.close()
