"""No call fails while everything changes; the whole of it is bench/gateway_soak.py by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "bench" / "gateway_soak.py"


@pytest.mark.slow
def test_no_call_fails_while_routes_certificates_and_processes_change() -> None:
    counts = ("--routes", "20", "--certificates", "2", "--kills", "1", "--restarts", "4")
    ended = subprocess.run(
        [sys.executable, str(SOAK), *counts],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count(" 0 failed") == 4
