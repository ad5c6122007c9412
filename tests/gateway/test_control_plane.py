"""A control plane whose files are not what they must be does not start, in one clear line."""

import subprocess
import sys
from pathlib import Path

import pytest

PRIVATE = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"


def start(directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    flags = {
        "--listen": f"unix:{directory}/gateway.sock",
        "--data-dir": str(directory / "data"),
        "--public-listen": "127.0.0.1:1",
        **{f"--{name}": f"unix:{directory}/x" for name in ("registry", "trainer", "inference")},
    }
    argv = [sys.executable, "-m", "servery_gateway", *(p for f in flags.items() for p in f), *more]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


def damaged_signing_key(directory: Path) -> list[str]:
    (directory / "data").mkdir()
    (directory / "data" / "signing-key.pem").write_text(PRIVATE)
    return []


def no_certificate(directory: Path) -> list[str]:
    paths = [str(directory / name) for name in ("tls.crt", "tls.key")]
    for path in paths:
        Path(path).write_text(PRIVATE)
    return ["--public-tls-certificate", paths[0], "--public-tls-key", paths[1]]


@pytest.mark.parametrize(
    ("prepare", "named"),
    [
        pytest.param(damaged_signing_key, "signing-key-", id="a damaged signing key"),
        pytest.param(no_certificate, "public_tls_certificate", id="no certificate"),
    ],
)
def test_the_start_stops_with_one_line_that_names_the_file(
    own_directory: Path, prepare: object, named: str
) -> None:
    assert callable(prepare)
    ended = start(own_directory, *prepare(own_directory))
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert '"critical"' in last
    assert named in last
    assert "Traceback" not in ended.stderr
