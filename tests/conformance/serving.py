"""`servery-inference` as its users start it: a process of its own on a directory of models."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVER: Final = Path(sys.executable).with_name("servery-inference")
_UNLIMITED: Final = [("grpc.max_receive_message_length", -1)]


@dataclass(frozen=True, slots=True)
class Process:
    """A running server whose models are settled."""

    channel: grpc.aio.Channel
    log: Path


@asynccontextmanager
async def serving(
    root: Path, folder: Path, *arguments: str, address: str | None = None, ready_s: float = 60
) -> AsyncIterator[Process]:
    """Serve `root` for the length of the block; log and, by default, socket lie in `folder`.

    Raises:
        AssertionError: It ended early, did not become ready in time, or did not drain.
    """
    address = address or f"unix:{folder}/inference.sock"
    log = folder / "inference.log"
    with log.open("w") as output:
        process = await asyncio.create_subprocess_exec(
            *(SERVER, "--model-repository", root, "--listen", address, "--drain-s", "1"),
            *("--log-level", "warning", *arguments),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    ended = asyncio.create_task(process.wait())
    try:
        async with grpc.aio.insecure_channel(address, options=_UNLIMITED) as channel:
            ready = asyncio.create_task(_ready(channel))
            await asyncio.wait([ready, ended], timeout=ready_s, return_when="FIRST_COMPLETED")
            assert ready.done(), f"not ready: {log.read_text()[-4000:]}"
            await ready
            yield Process(channel, log)
        assert not ended.done(), f"ended with {process.returncode}: {log.read_text()[-4000:]}"
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(asyncio.shield(ended), 20)
            except TimeoutError:
                process.kill()
                raise AssertionError(f"does not stop: {log.read_text()[-4000:]}") from None
        await ended


async def _ready(channel: grpc.aio.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
    async for response in stub.Watch(request, wait_for_ready=True):
        if response.status == health_pb2.HealthCheckResponse.SERVING:
            return
