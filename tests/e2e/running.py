"""The whole platform, as a user starts it."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from servery import Client

SERVERY = Path(sys.executable).with_name("servery")


@dataclass(frozen=True)
class Platform:
    """A running `servery up`."""

    address: str
    key: str
    data_dir: Path
    log: Path

    def client(self, key: str | None = None) -> Client:
        return Client(self.address, key or self.key)

    def cli(
        self, *arguments: str | Path, key: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the `servery` command against this platform, as a user would."""
        return subprocess.run(
            [SERVERY, *arguments],
            env={"SERVERY_ADDRESS": self.address, "SERVERY_API_KEY": key or self.key},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def servery_up(directory: Path, port: int | None = None) -> Iterator[Platform]:
    """Run `servery up` on `directory` inside the block; it must drain with status 0."""
    port = port or free_port()
    log = directory / "up.log"
    key_file = directory / "key"
    with log.open("a+") as output:
        process = subprocess.Popen(
            [
                *(SERVERY, "up", "--port", str(port)),
                *("--data-dir", directory / "data", "--key-file", key_file),
            ],
            stdout=output,
            stderr=output,
        )
        try:
            wait_for_line(log, "servery: ready", process)
            yield Platform(f"127.0.0.1:{port}", key_file.read_text(), directory / "data", log)
        finally:
            process.send_signal(signal.SIGINT)
            status = process.wait(60)
    assert status == 0, log.read_text()


def wait_for_line(log: Path, line: str, process: subprocess.Popen[bytes]) -> None:
    """Return when `log` has grown by `line`; fail when the process ends first."""
    seen = log.stat().st_size
    while True:
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            if line in log.read_text()[seen:]:
                return
        else:
            raise AssertionError(log.read_text())
