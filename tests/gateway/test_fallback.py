"""An Envoy that starts while there is no control plane serves by what that last put in force."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from servery.gateway.v1 import gateway_pb2 as pb
from servery.gateway.v1 import gateway_pb2_grpc as pb_grpc
from servery_gateway.envoy import admin, is_ready
from tests.gateway.test_resilience import GET_MODEL, answers, argv

if TYPE_CHECKING:
    from tests.gateway.conftest import Builder

pytestmark = pytest.mark.slow


async def test_envoy_serves_without_a_control_plane_and_follows_it_when_it_is_back(
    build: Builder, own_directory: Path
) -> None:
    settings = build.settings_for(own_directory)
    log = own_directory / "gateway.log"
    run_dir, files = own_directory / "envoy", settings.data_dir / "configuration"
    with build.process(*argv(settings), log=log) as gateway:
        async with build.running_stack(settings, own_directory) as stack:
            token = await stack.token(read=["*"])
            key = await stack.new_key(read=["*"])
            dead_token = await stack.exchange(key.secret)
            keys = pb_grpc.ApiKeyServiceStub(stack.platform)
            await keys.RevokeApiKey(pb.RevokeApiKeyRequest(name=key.api_key.name))
            os.kill(gateway.pid, signal.SIGKILL)
            gateway.wait(5)
            await asyncio.to_thread(admin, run_dir, "POST", "/quitquitquit")
            await build.until(lambda: asyncio.to_thread(lambda: not is_ready(run_dir)))

            flags = ("--ads", settings.listen, "--run-dir", str(run_dir), "--fallback", str(files))
            with build.process("servery_gateway.envoy", *flags, log=own_directory / "envoy.log"):
                await build.until(lambda: asyncio.to_thread(is_ready, run_dir))
                await stack.call(GET_MODEL, token)
                error = await stack.refusal(GET_MODEL, dead_token)
                assert error.reason == "ERROR_REASON_API_KEY_INVALID"
                error = await stack.refusal("/servery.gateway.v1.TenantService/ListTenants", token)
                assert error.code is grpc.StatusCode.PERMISSION_DENIED

                with build.process(*argv(settings), log=log):
                    await build.until(answers(lambda: stack.new_key(read=["*"])))
                    other = await stack.new_key(read=["*"])
                    await build.until(answers(lambda: stack.exchange(other.secret)))
                    live = await stack.exchange(other.secret)
                    await stack.call(GET_MODEL, live)
                    await keys.RevokeApiKey(pb.RevokeApiKeyRequest(name=other.api_key.name))
                    accepted = answers(lambda: stack.call(GET_MODEL, live))
                    await build.until(lambda: is_not(accepted()), 2)
    assert all(path.stat().st_mode & 0o077 == 0 for path in files.iterdir())


async def is_not(condition: Awaitable[bool]) -> bool:
    return not await condition
