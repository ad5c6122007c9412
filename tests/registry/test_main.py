"""The process: what it refuses to start with, and how it stops."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from servery_registry.__main__ import RegistrySettings
from servery_registry.sandbox import AdmissionLimits
from servery_registry.service import open_registry
from servery_rpc.settings import load
from tests.registry.conftest import LIMIT_BYTES, Clock


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
