"""What callers notice when worker processes, or all of them, end."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import asyncio
import os
import signal
from pathlib import Path

import grpc

from servery.errors import ApiError
from servery.inference.v1 import grpc_service_pb2 as pb
from tests.inference import graphs
from tests.inference.calling import stub
from tests.inference.test_control import load
from tests.inference.working import added, added_by_all, children, connections, eventually, serve


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
