"""The process: what it refuses to start with, and how it stops."""

from __future__ import annotations  # The async stub exists only in the .pyi.

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from servery.registry.v1 import registry_pb2 as pb
from servery.registry.v1 import registry_pb2_grpc as pb_grpc
from servery_registry.__main__ import RegistrySettings
from servery_registry.sandbox import AdmissionLimits
from servery_registry.service import open_registry
from servery_rpc.settings import load
from tests.registry.conftest import LIMIT_BYTES, Clock, failure


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--data-dir"),
        (["--data-dir", "d", "--max-bundle-bytes", "0"], "max_bundle_bytes"),
        (["--data-dir", "d", "--admission-memory-bytes", "1"], "admission_memory_bytes"),
        (["--data-dir", "d", "--admission-s", "0"], "admission_s"),
        (["--data-dir", "d", "--listen", "0.0.0.0:1"], "listen"),
    ],
)
def test_a_bad_setting_is_named(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        load(RegistrySettings, "SERVERY_REGISTRY", arguments, {})
    assert caught.value.code == 2
    assert named in capsys.readouterr().err


async def test_one_data_directory_has_one_registry(tmp_path: Path, clock: Clock) -> None:
    limits = AdmissionLimits(memory_bytes=2**31, wall_s=30)
    async with open_registry(tmp_path / "data", LIMIT_BYTES, limits, clock):
        ended = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "servery_registry", "--data-dir", str(tmp_path / "data")],
            capture_output=True,
            timeout=30,
            check=False,
        )
    assert ended.returncode == 1
    assert b"data_dir" in ended.stderr
    assert b"Traceback" not in ended.stderr


async def test_a_stop_does_not_wait_for_watchers(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/r.sock"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "servery_registry", "--data-dir", str(tmp_path / "data")),
        *("--listen", address, "--drain-s", "60"),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            request = pb.WatchModelsRequest(parent="tenants/-")
            call: Any = pb_grpc.RegistryServiceStub(channel).WatchModels(
                request, wait_for_ready=True
            )
            assert (await call.read()).snapshot_complete
            process.terminate()
            assert (await failure(call.read())).code is grpc.StatusCode.UNAVAILABLE
            async with asyncio.timeout(10):
                assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
