"""A whole process: JSON logs, metrics, a drain on SIGTERM, one clear line when it cannot start."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

PROGRAM = Path(__file__).with_name("small_process.py")


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, PROGRAM, *arguments],
        stderr=subprocess.PIPE,
        env={**os.environ, "SERVERY_SMALL_DRAIN_S": "1"},
        text=True,
    )


def entry(process: subprocess.Popen[str], starting: str) -> dict[str, Any]:
    """Return the next log entry whose message starts so."""
    assert process.stderr is not None
    for line in process.stderr:
        found: dict[str, Any] = json.loads(line)
        if found["message"].startswith(starting):
            return found
    raise AssertionError(starting)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    process = start("--metrics-port", "0")
    yield process
    process.kill()
    process.wait()
    assert process.stderr is not None
    process.stderr.close()


def test_it_logs_counts_and_drains(process: subprocess.Popen[str]) -> None:
    metrics = entry(process, "metrics on ")["message"].removeprefix("metrics on ")
    listening = entry(process, "listening on ")
    assert listening["level"] == "info"
    assert listening["logger"] == "small"
    with grpc.insecure_channel(listening["message"].removeprefix("listening on ")) as channel:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    with urllib.request.urlopen(metrics, timeout=5) as page:
        text = page.read().decode()
    sample = 'servery_grpc_requests_total{code="OK",method="/grpc.health.v1.Health/Check"} 1.0'
    assert sample in text
    process.send_signal(signal.SIGTERM)
    entry(process, "drained")
    assert process.wait(10) == 0


def test_a_taken_port_is_one_line_and_status_1(process: subprocess.Popen[str]) -> None:
    address = entry(process, "listening on ")["message"].removeprefix("listening on ")
    second = start("--listen", address)
    _, log = second.communicate(timeout=20)
    assert second.returncode == 1
    last = json.loads(log.splitlines()[-1])
    assert last["level"] == "critical"
    assert address in last["message"]
