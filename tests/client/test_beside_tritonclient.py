"""Servery's client and tritonclient live in one process, whichever is imported first.

Runs in an environment of its own, `.venv-tritonclient`, which `make test` makes: tritonclient needs
protobuf 6, our servers have 7.
"""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-tritonclient" / "bin" / "python"

BOTH = """
from servery.inference.v1 import grpc_service_pb2 as ours
from tritonclient.grpc import service_pb2 as theirs
request = ours.ModelInferRequest(model_name="m", raw_input_contents=[b"x"])
request.parameters["priority"].uint64_param = 3
read = theirs.ModelInferRequest.FromString(request.SerializeToString())
assert read.model_name == "m" and read.parameters["priority"].uint64_param == 3
"""


@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-tritonclient: run through `make test`")
@pytest.mark.parametrize(
    "imports",
    ["import servery, tritonclient.grpc", "import tritonclient.grpc, servery"],
    ids=["servery first", "tritonclient first"],
)
def test_both_clients_in_one_process(imports: str) -> None:
    done = subprocess.run(
        [PYTHON, "-c", f"{imports}\n{BOTH}"],
        env={"PYTHONPATH": str(ROOT / "client")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
