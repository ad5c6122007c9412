"""What Envoy does with more than it can hold: it refuses, stays alive, and serves again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hpack import Encoder

from servery.inference.v1 import grpc_service_pb2 as oip
from servery_gateway.control_plane import control_plane
from servery_gateway.envoy import admin, is_ready
from servery_h2 import frames
from tests.gateway.test_resilience import answers

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder, Stack

INFER = "/inference.GRPCInferenceService/ModelInfer"
MIB = 1 << 20
MAX_FRAME = 1 << 14


class Client:
    """A client of HTTP/2 that does what no library would."""

    def __init__(self, stack: Stack, token: str) -> None:
        address = stack.settings.public_address
        self._socket = socket.create_connection((address.host, address.port), timeout=10)
        self._send(frames.PREFACE + frames.settings({}))
        self.first_of(frames.SETTINGS)
        self._send(frames.frame(frames.SETTINGS, frames.ACK, 0))  # Its windows hold from now on.
        self._headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", INFER),
            (":authority", "x"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("authorization", f"Bearer {token}"),
        ]
        self._encoder = Encoder()
        self._next_id = 1

    def begin(self, *more: tuple[str, str]) -> int:
        """Begin a call; return its stream."""
        stream = self._next_id
        self._next_id += 2
        block = self._encoder.encode([*self._headers, *more])
        self._send(frames.headers(stream, block, MAX_FRAME, end_stream=False))
        return stream

    def send_part_of_a_message(self, stream: int, num_bytes: int) -> None:
        """Send so much of a message, and never the rest."""
        head = b"\0" + (num_bytes + MIB).to_bytes(4, "big")
        self._send(frames.frame(frames.DATA, 0, stream, head))
        for _ in range(num_bytes // MAX_FRAME):
            self._send(frames.frame(frames.DATA, 0, stream, bytes(MAX_FRAME)))

    def first_of(self, kind: int) -> tuple[int, bytes]:
        """Read until a frame of this kind comes; return its stream and payload."""
        received = b""
        while True:
            while len(received) >= 9:
                high, low, found, _, stream = frames.FRAME_HEADER.unpack_from(received)
                end = 9 + (high << 8 | low)
                if len(received) < end:
                    break
                payload, received = received[9:end], received[end:]
                if found == kind:
                    return stream, payload
            part = self._socket.recv(1 << 16)
            if not part:
                raise ConnectionResetError
            received += part

    def close(self) -> None:
        self._socket.close()

    def _send(self, data: bytes) -> None:
        self._socket.sendall(data)


@contextmanager
def client(stack: Stack, token: str) -> Iterator[Client]:
    opened = Client(stack, token)
    try:
        yield opened
    finally:
        opened.close()


@pytest.mark.asyncio(loop_scope="session")
async def test_a_connection_has_at_most_a_hundred_calls_at_once(stack: Stack) -> None:
    token = await stack.token(infer=["*"])

    def open_too_many() -> bool:
        with client(stack, token) as greedy:
            for _ in range(101):
                greedy.begin()
            with contextlib.suppress(ConnectionResetError):  # Or the whole connection ends.
                greedy.first_of(frames.RST_STREAM)
            return True

    assert await asyncio.to_thread(open_too_many)
    await stack.call(INFER, token, oip.ModelInferRequest(model_name="digits"))


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([("x-large", "x" * 70_000)], id="too large"),
        pytest.param([(f"x-{n}", "x") for n in range(150)], id="too many"),
        pytest.param([("x_servery_model", "digits")], id="an underscore"),
    ],
)
async def test_a_call_with_such_headers_ends_at_once(
    stack: Stack, headers: list[tuple[str, str]]
) -> None:
    token = await stack.token(infer=["*"])
    stack.backends["inference"].metadata.clear()

    def ends() -> bool:
        with client(stack, token) as greedy:
            greedy.begin(*headers)
            with contextlib.suppress(ConnectionResetError):
                greedy.first_of(frames.RST_STREAM)
            return True

    assert await asyncio.to_thread(ends)
    assert not stack.backends["inference"].metadata
    await stack.call(INFER, token, oip.ModelInferRequest(model_name="digits"))


@pytest.mark.slow
async def test_clients_that_hold_memory_are_let_go_before_it_runs_out(
    build: Builder, own_directory: Path
) -> None:
    """Each sends most of a large message and never its end, as one that is slow would."""
    settings = build.settings_for(own_directory)
    run_dir = own_directory / "envoy"
    async with (
        control_plane(settings),
        build.running_stack(settings, own_directory, None, "--max-heap-mib", "100") as stack,
    ):
        token = await stack.token(infer=["*"])
        with contextlib.ExitStack() as open_clients:

            def hold() -> None:
                greedy = open_clients.enter_context(client(stack, token))
                with contextlib.suppress(OSError):
                    for _ in range(2):
                        greedy.send_part_of_a_message(greedy.begin(), 40 * MIB)

            async def is_let_go() -> bool:
                return await asyncio.to_thread(heap_bytes, run_dir) < 100 * MIB

            for _ in range(3):  # 240 MiB, more than twice what there is.
                await asyncio.to_thread(hold)
            await build.until(is_let_go, 20)
        assert stat(run_dir, "envoy.overload_actions.reset_high_memory_stream.count") > 0
        assert is_ready(run_dir)

        request = oip.ModelInferRequest(model_name="digits")
        await build.until(answers(lambda: stack.call(INFER, token, request)), 20)


def heap_bytes(run_dir: Path) -> int:
    _, text = admin(run_dir, "GET", "/memory")
    return int(json.loads(text)["allocated"])


def stat(run_dir: Path, name: str) -> int:
    _, text = admin(run_dir, "GET", f"/stats?filter={name}")
    return sum(int(line.split()[-1]) for line in text.splitlines())
