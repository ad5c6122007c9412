"""What the death of a process does to traffic, with every process a real one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from servery.gateway.v1 import gateway_pb2 as pb
from servery.gateway.v1 import gateway_pb2_grpc as pb_grpc
from servery_gateway.control_plane import control_plane
from servery_gateway.envoy import admin, is_ready

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder

pytestmark = pytest.mark.slow

GET_MODEL = "/servery.registry.v1.RegistryService/GetModel"


def argv(settings: Any) -> list[str]:
    names = ("listen", "data_dir", "public_listen", "registry", "trainer", "inference", "drain_s")
    flags = [(f"--{name.replace('_', '-')}", str(getattr(settings, name))) for name in names]
    return ["servery_gateway", *(part for flag in flags for part in flag)]


def answers(call: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[bool]]:
    """Make a condition of a call: that it succeeds."""

    async def succeeded() -> bool:
        try:
            await call()
        except grpc.aio.AioRpcError:
            return False
        return True

    return succeeded


async def test_traffic_outlives_the_control_plane_which_comes_back_with_all_it_knew(
    build: Builder, own_directory: Path
) -> None:
    settings = build.settings_for(own_directory)
    log = own_directory / "gateway.log"
    with build.process(*argv(settings), log=log) as first:
        async with build.running_stack(settings, own_directory) as stack:
            key = await stack.new_key(read=["*"])
            token = await stack.exchange(key.secret)
            revoked = await stack.new_key(read=["*"])
            dead_token = await stack.exchange(revoked.secret)
            keys = pb_grpc.ApiKeyServiceStub(stack.platform)
            await keys.RevokeApiKey(pb.RevokeApiKeyRequest(name=revoked.api_key.name))

            os.kill(first.pid, signal.SIGKILL)
            first.wait(5)
            for _ in range(20):
                await stack.call(GET_MODEL, token)
            error = await stack.refusal(GET_MODEL, dead_token)
            assert error.reason == "ERROR_REASON_API_KEY_INVALID"

            with build.process(*argv(settings), log=log):
                await build.until(answers(lambda: stack.exchange(key.secret)))
                await stack.call(GET_MODEL, token)
                await stack.refusal(GET_MODEL, dead_token)
                # Envoy is back, too: a revocation is in force when it returns.
                connected = "control_plane.connected_state"
                await build.until(lambda: stat_is(stack.directory, connected, 1))
                await keys.RevokeApiKey(pb.RevokeApiKeyRequest(name=key.api_key.name))
                await stack.refusal(GET_MODEL, token)


async def stat_is(directory: Path, name: str, value: int) -> bool:
    """Tell whether Envoy counts `value` under `name`."""
    path = f"/stats?filter=^{name}$"
    _, text = await asyncio.to_thread(admin, directory / "envoy", "GET", path)
    return text.strip() == f"{name}: {value}"


async def test_a_server_behind_is_back_within_two_seconds_of_its_restart(
    build: Builder, own_directory: Path
) -> None:
    settings = build.settings_for(own_directory)
    with build.process(*argv(settings), log=own_directory / "gateway.log"):
        async with build.running_stack(settings, own_directory) as stack:
            token = await stack.token(infer=["*"])
            path = "/inference.GRPCInferenceService/ServerLive"
            await stack.call(path, token)
            await stack.stop_backend("inference")
            error = await stack.refusal(path, token)
            assert error.code is grpc.StatusCode.UNAVAILABLE
            healthy = "cluster.inference.membership_healthy"
            await build.until(lambda: stat_is(stack.directory, healthy, 0))
            await stack.start_backend("inference")
            start = time.monotonic()
            await build.until(answers(lambda: stack.call(path, token)))
            assert time.monotonic() - start < 2


async def test_envoy_is_not_ready_until_its_port_is_free(
    build: Builder, own_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = build.settings_for(own_directory)
    run_dir = own_directory / "envoy"
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.public_address.port))
        other.listen()
        async with control_plane(settings):
            with build.envoy(own_directory):
                await build.until(lambda: refused(caplog))
                assert not is_ready(run_dir)
                other.close()
                await build.until(lambda: asyncio.to_thread(is_ready, run_dir))


async def refused(caplog: pytest.LogCaptureFixture) -> bool:
    return "Address already in use" in caplog.text


async def test_envoy_is_the_process_that_was_started_and_says_when_it_is_ready(
    build: Builder, own_directory: Path
) -> None:
    settings = build.settings_for(own_directory)
    run_dir = own_directory / "envoy"
    with build.envoy(own_directory) as process:
        await build.until(lambda: asyncio.to_thread((run_dir / "admin.sock").exists))
        executable = Path(f"/proc/{process.pid}/exe").resolve()  # noqa: ASYNC240 in memory
        assert executable.name == "envoy"
        assert not is_ready(run_dir)
        with build.process(*argv(settings), log=own_directory / "gateway.log"):
            await build.until(lambda: asyncio.to_thread(is_ready, run_dir))
        assert (run_dir / "admin.sock").stat().st_mode & 0o077 == 0
    assert not is_ready(run_dir)
