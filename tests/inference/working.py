"""Servers with worker processes, and clients with several connections."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from servery_inference.serving import RunningInference, serving_inference
from servery_inference.settings import InferenceSettings
from tests.inference.calling import answers, infer_request, stub
from tests.inference.test_control import X

TIMEOUT_S = 30


@asynccontextmanager
async def serve(root: Path, **flags: Any) -> AsyncIterator[RunningInference]:
    """Serve by two workers; go on once all is ready."""
    defaults: dict[str, Any] = {"drain_s": 5, "admission_wall_s": 0, "workers": 2}
    settings = InferenceSettings(model_repository=root, **(defaults | flags))
    async with serving_inference(settings) as server:
        await asyncio.wait_for(server.ready.wait(), TIMEOUT_S)
        yield server


@asynccontextmanager
async def connections(address: str, count: int = 4) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Open channels that share no connection."""
    async with AsyncExitStack() as stack:
        channels = []
        for _ in range(count):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.aio.insecure_channel(address, options=options)
            channels.append(await stack.enter_async_context(channel))
            await asyncio.wait_for(channel.channel_ready(), TIMEOUT_S)
        yield channels


def children(pid: int | str = "self") -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return sorted(int(child) for task in tasks for child in task.read_text().split())


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not await holds():  # noqa: ASYNC110  it holds in another process
            await asyncio.sleep(0.05)


async def added(channel: grpc.aio.Channel, model: str = "m") -> float:
    response = await stub(channel).ModelInfer(infer_request(model, {"x": X}), timeout=TIMEOUT_S)
    return float(answers(response)["y"][0, 0])


async def added_by_all(channels: list[grpc.aio.Channel], model: str = "m") -> set[float]:
    return set(await asyncio.gather(*(added(channel, model) for channel in channels)))
