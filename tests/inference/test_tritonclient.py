"""tritonclient against the running process: every method of its four clients, unmodified.

Runs in an environment of its own, `.venv-tritonclient`, which `make test` makes: tritonclient needs
protobuf 6, our servers have 7.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.inference import graphs
from tests.inference.test_sequences import CONFIG, LONG_US

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-tritonclient" / "bin" / "python"
PROGRAM = Path(__file__).parent / "triton" / "all_methods.py"
HTTP = "inference listens for HTTP on "
GRPC = "inference listening on "

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON.exists(), reason="no .venv-tritonclient: run through `make test`"
    ),
]


@dataclass(frozen=True)
class Running:
    grpc: str
    http: str
    graph: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`servery-inference` as an operator starts it, in the explicit mode."""
    root = tmp_path_factory.mktemp("models")
    graphs.store(root, "simple", graphs.add_and_subtract())
    graphs.store(root, "texts", graphs.identity("BYTES"))
    graphs.store(root, "half", graphs.identity("FP16"))
    graphs.store(root, "told", graphs.plus(1), explain_onnx=graphs.parts())
    graphs.store(root, "sum", graphs.running_sum())
    graphs.configure(root, "sum", CONFIG % ("direct {}", LONG_US))
    graph = tmp_path_factory.mktemp("elsewhere") / "plus.onnx"
    graph.write_bytes(graphs.plus(1))
    command = [
        *(sys.executable, "-m", "servery_inference", "--model-repository", str(root)),
        *("--listen", "127.0.0.1:0", "--http-port", "0", "--shared-memory", "true"),
        *("--model-control-mode", "explicit", "--load-model", "*", "--drain-s", "1"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            addresses = dict(_addresses(process.stderr))
            rest = threading.Thread(target=process.stderr.read)  # A full pipe would hold it up.
            rest.start()
            yield Running(addresses[GRPC], addresses[HTTP], graph)
        finally:
            process.terminate()
            process.wait(20)
        rest.join()
    assert process.returncode == 0


def _addresses(log: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Find where a process listens in its log, up to the line that says that it is ready."""
    for line in log:
        if not line.startswith("{"):
            continue  # Of a library.
        message = json.loads(line)["message"]
        if message == "inference is ready":
            return
        for prefix in (HTTP, GRPC):
            if message.startswith(prefix):
                yield prefix, message.removeprefix(prefix)


@pytest.mark.parametrize("kind", ["grpc", "grpc.aio", "http", "http.aio"])
def test_every_method_of_a_client(server: Running, kind: str) -> None:
    address = server.grpc if kind.startswith("grpc") else server.http
    done = subprocess.run(
        [PYTHON, PROGRAM, kind, address, server.graph],
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("passed: all\n")
