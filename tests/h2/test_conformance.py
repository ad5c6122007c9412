"""Other people's verdict: h2spec, and the interoperability clients of grpc-go and grpc-java."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.h2.conftest import Authority

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "build" / "bin"
H2SPEC = "github.com/summerwind/h2spec/cmd/h2spec"
INTEROP = "google.golang.org/grpc/interop/client"

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

JAVA_CASES = [
    *(case for case in CASES if case not in ("rpc_soak", "channel_soak")),
    "server_compressed_unary",
    "server_compressed_streaming",
    "very_large_request",
    "pick_first_unary",
]
"""Without what needs handlers to see whether a request was compressed, or HTTP GET."""

pytestmark = pytest.mark.slow


def tool(package: str) -> Path:
    """Return the path of a Go program, built once; skip where it cannot be.

    `go/go.mod` pins the modules. Asked for by package and version instead, Go looks for a module at
    every prefix of the path, and a proxy that answers 403 to one of them ends the search.
    """
    path = TOOLS / package.rpartition("/")[2]
    if path.exists():
        return path
    go = shutil.which("go")
    if go is None:
        pytest.skip(f"{package} needs go to be built")
    built = subprocess.run(
        [go, "build", "-o", path, package],
        cwd=Path(__file__).parent / "go",
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if built.returncode:
        pytest.skip(f"{package} cannot be built: {built.stderr[-200:]}")
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
    h2spec = tool(H2SPEC)
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
    client = tool(INTEROP)
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


def java_client() -> list[str]:
    """Return the command of grpc-java's client, fetched once; skip where it cannot be."""
    java, mvn = shutil.which("java"), shutil.which("mvn")
    if java is None or mvn is None:
        pytest.skip("grpc-java's client needs java and mvn")
    jars = ROOT / "build" / "java"
    pom = Path(__file__).parent / "java" / "pom.xml"
    if not any(jars.glob("grpc-interop-testing-*.jar")):
        fetch = [mvn, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
        fetched = subprocess.run(
            [*fetch, f"-DoutputDirectory={jars}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        if fetched.returncode:
            pytest.skip(f"grpc-java's client cannot be fetched: {fetched.stdout[-200:]}")
    start_fast = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
    return [java, *start_fast, "-cp", f"{jars}/*", "io.grpc.testing.integration.TestServiceClient"]


def its_certificate(folder: Path) -> list[str]:
    """Return server options for the certificate that grpc-java's client trusts by itself."""
    (jar,) = (ROOT / "build" / "java").glob("grpc-testing-[0-9]*.jar")
    with zipfile.ZipFile(jar) as archive:
        for name in ("server1.pem", "server1.key"):
            (folder / name).write_bytes(archive.read(f"certs/{name}"))
    return ["--certificate", str(folder / "server1.pem"), "--key", str(folder / "server1.key")]


@pytest.mark.timeout(700)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_the_java_interop_client_is_content(tmp_path: Path, *, tls: bool) -> None:
    client = java_client()
    options = its_certificate(tmp_path) if tls else []
    secure = ["--use_tls=false"]
    if tls:
        secure = ["--use_test_ca=true", "--server_host_override=foo.test.google.fr"]
    failed = {}
    with server("--uvloop", *options) as port:
        for case in JAVA_CASES:
            where = ["--server_host=127.0.0.1", f"--server_port={port}", f"--test_case={case}"]
            done = subprocess.run(
                [*client, *where, *secure],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            if done.returncode:
                failed[case] = done.stderr[-500:]
    assert failed == {}
