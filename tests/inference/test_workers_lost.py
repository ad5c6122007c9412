"""What callers notice when worker processes, or all of them, end."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest

from servery.errors import ApiError
from servery.inference.v1 import grpc_service_pb2 as pb
from tests.inference import graphs
from tests.inference.calling import answers, index, infer_request, stub
from tests.inference.test_control import load
from tests.inference.working import added, added_by_all, children, connections, eventually, serve

pytestmark = pytest.mark.slow


async def test_a_worker_that_is_killed_is_replaced_and_others_do_not_notice(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    before = set(children())
    async with (
        serve(tmp_path, model_control_mode="explicit", load_model=("m",)) as server,
        connections(server.address, 8) as channels,
    ):
        request = pb.LogSettingsRequest()
        request.settings["log_verbose_level"].uint32_param = 1
        await stub(channels[0]).LogSettings(request)
        victim, *rest = sorted(set(children()) - before)
        stop = asyncio.Event()

        async def call_again_and_again(channel: grpc.aio.Channel) -> ApiError | None:
            while not stop.is_set():
                try:
                    assert await added(channel) == 1
                except grpc.aio.AioRpcError as error:
                    return ApiError.of(error)
            return None

        calling = [asyncio.create_task(call_again_and_again(channel)) for channel in channels]
        os.kill(victim, signal.SIGKILL)
        await asyncio.wait(calling, return_when=asyncio.FIRST_COMPLETED)
        async with connections(server.address, 1) as [other]:
            assert await added(other) == 1  # By those that are left.
        graphs.store(tmp_path, "m", graphs.plus(2), 2)
        stop.set()
        ended = await asyncio.gather(*calling)
        assert sum(error is not None for error in ended) == 4

        async def is_replaced() -> bool:
            new = set(children()) - before - {victim, *rest}
            return len(new) == len(rest)

        await eventually(is_replaced)
        await load(channels[0], "m")
        async with connections(server.address, 8) as again:
            assert await added_by_all(again) == {2}
            for channel in again:
                logs = await stub(channel).LogSettings(pb.LogSettingsRequest())
                assert logs.settings["log_verbose_level"].uint32_param == 1


async def test_a_version_is_loaded_though_a_worker_dies_meanwhile(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    before = set(children())
    async with serve(tmp_path, model_control_mode="poll", repository_poll_secs=0.05) as server:
        victim, *_ = set(children()) - before
        async with connections(server.address, 1) as [channel]:
            graphs.store(tmp_path, "m", graphs.plus(2), 2)

            async def is_seen() -> bool:
                return ("m", "2") in await index(channel)

            await eventually(is_seen)
        os.kill(victim, signal.SIGKILL)

        async def is_served() -> bool:
            async with connections(server.address) as channels:
                return await added_by_all(channels) == {2}

        await eventually(is_served)


async def test_a_worker_that_cannot_load_what_the_others_serve_gets_no_calls(
    tmp_path: Path,
) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    before = set(children())
    async with serve(tmp_path) as server:
        (tmp_path / "m" / "1" / "model.onnx").write_bytes(graphs.plus(2))
        victim, *rest = sorted(set(children()) - before)
        os.kill(victim, signal.SIGKILL)

        async def was_tried_again() -> bool:
            return bool(set(children()) - before - {victim, *rest})

        for _ in range(2):
            await eventually(was_tried_again)
            async with connections(server.address, 3) as channels:
                assert await added_by_all(channels) == {1}


async def test_calls_under_way_are_answered_when_the_server_stops(tmp_path: Path) -> None:
    graphs.store(tmp_path, "patient", graphs.patient())
    async with AsyncExitStack() as stack:
        async with serve(tmp_path) as server:
            channels = await stack.enter_async_context(connections(server.address))
            request = infer_request("patient", {"x": np.array([100_000])})
            calls = [stub(channel).ModelInfer(request) for channel in channels]

            async def one_is_answered() -> bool:
                statistics = pb.ModelStatisticsRequest(name="patient")
                [model] = (await stub(channels[0]).ModelStatistics(statistics)).model_stats
                return model.execution_count > 0

            await eventually(one_is_answered)
        for call in calls:
            assert answers(await call)


async def test_workers_end_with_their_parent_and_share_its_metrics(tmp_path: Path) -> None:
    graphs.store(tmp_path, "m", graphs.plus(1))
    address = f"unix:{tmp_path}/s"
    port = free_port()
    command = [
        *(sys.executable, "-m", "servery_inference", "--workers", "2", "--admission-wall-s", "0"),
        *("--model-repository", str(tmp_path), "--listen", address, "--metrics-port", str(port)),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: ASYNC220
    try:
        async with connections(address) as channels:

            async def is_ready() -> bool:
                return (await stub(channels[0]).ServerReady(pb.ServerReadyRequest())).ready

            await eventually(is_ready)
            assert await added_by_all(channels) == {1}
            first, _ = workers = children(process.pid)
            name = 'nv_inference_request_success{model="m",version="1"}'
            metrics = await asyncio.to_thread(scraped, port)
            assert metrics[name] == 4
            assert metrics["servery_inference_workers"] == 2
            assert metrics["servery_inference_worker_restarts_total"] == 0
            os.kill(first, signal.SIGKILL)

            async def is_replaced() -> bool:
                if children(process.pid) == workers:
                    return False
                metrics = await asyncio.to_thread(scraped, port)
                assert metrics[name] == 4  # Counters never go back.
                assert metrics["servery_inference_worker_restarts_total"] in (0, 1)
                return metrics["servery_inference_workers"] == 2

            await eventually(is_replaced)
        process.kill()

        async def are_gone() -> bool:
            return not any(is_running(worker) for worker in workers)

        await eventually(are_gone)
    finally:
        process.kill()
        process.wait()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def scraped(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as response:
        lines = response.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}
