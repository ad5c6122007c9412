"""Other people's verdict: h2spec, and the interoperability client of grpc-go."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.h2.conftest import Authority

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "build" / "bin"
H2SPEC = "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1"
INTEROP = "google.golang.org/grpc/interop/client@v1.85.0"

CASES = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "rpc_soak",
    "channel_soak",
]

pytestmark = pytest.mark.slow


def tool(name: str, module: str) -> Path:
    """Return the path of a Go program, built once; skip where it cannot be."""
    path = TOOLS / name
    if path.exists():
        return path
    go = shutil.which("go")
    if go is None:
        pytest.skip(f"{name} needs go to be built")
    built = subprocess.run(
        [go, "install", module],
        env={**os.environ, "GOBIN": str(TOOLS)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if built.returncode:
        pytest.skip(f"{module} cannot be built: {built.stderr[-200:]}")
    return path


@contextmanager
def server(*arguments: str) -> Iterator[int]:
    """Run the interop service in a process; give its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.h2.interop", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


@pytest.mark.timeout(700)
@pytest.mark.parametrize("loop", [(), ("--uvloop",)], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_h2spec_is_all_green(authority: Authority, loop: tuple[str, ...], *, tls: bool) -> None:
    h2spec = tool("h2spec", H2SPEC)
    certificate, key = authority.issue("h2spec")
    options = ["--certificate", str(certificate), "--key", str(key)] if tls else []
    secure = ["-t", "-k"] if tls else []
    with server(*loop, *options) as port:
        done = subprocess.run(
            [h2spec, "-h", "127.0.0.1", "-p", str(port), "-o", "5", *secure],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    counts = re.search(r"(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed", done.stdout)
    assert counts is not None, done.stdout
    total, passed, *_ = map(int, counts.groups())
    assert (passed, total > 140) == (total, True), done.stdout


@pytest.mark.timeout(700)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_the_go_interop_client_is_content(authority: Authority, *, tls: bool) -> None:
    client = tool("client", INTEROP)
    certificate, key = authority.issue("interop")
    options = ["--certificate", str(certificate), "--key", str(key)] if tls else []
    secure = ["-use_tls", "-use_test_ca", "-ca_file", str(authority.path)] if tls else []
    failed = {}
    with server("--uvloop", *options) as port:
        for case in CASES:
            where = ["-server_host", "127.0.0.1", "-server_port", str(port), "-test_case", case]
            done = subprocess.run(
                [client, *where, *secure],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            if done.returncode:
                failed[case] = done.stderr[-500:]
    assert failed == {}
