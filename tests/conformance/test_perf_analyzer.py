"""Triton's perf_analyzer, the native program, measures this server as it measures Triton.

It lies in `.venv-perf`, which `make test` makes, beside the libraries that it needs; one of them is
there only if Debian's package libb64-0d could be had.
"""

import asyncio
import csv
import os
import re
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import pytest_asyncio
from onnx import helper, numpy_helper

from servery.inference.v1 import grpc_service_pb2 as pb
from servery.inference.v1 import grpc_service_pb2_grpc as pb_grpc
from tests.conformance.serving import serving
from tests.e2e.running import free_port
from tests.inference import graphs

ENVIRONMENT: Final = Path(__file__).parents[2] / ".venv-perf"
PROGRAM: Final = ENVIRONMENT / "bin" / "perf_analyzer"
LIBRARIES: Final = (
    *ENVIRONMENT.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib"),
    *ENVIRONMENT.glob("usr/lib/*"),
)
REQUESTS: Final = 50
MEASURE: Final = (
    *("--measurement-mode", "count_windows", "--measurement-request-count", str(REQUESTS)),
    *("--stability-percentage", "999", "--max-trials", "10"),
)

TWICE: Final = """
platform: "ensemble"
max_batch_size: 8
input [
  { name: "A" data_type: TYPE_INT32 dims: [ 16 ] },
  { name: "B" data_type: TYPE_INT32 dims: [ 16 ] }
]
output [{ name: "DOUBLED" data_type: TYPE_INT32 dims: [ 16 ] }]
ensemble_scheduling {
  step [
    {
      model_name: "simple" model_version: -1
      input_map { key: "a" value: "A" } input_map { key: "b" value: "B" }
      output_map { key: "sum" value: "S" } output_map { key: "difference" value: "D" }
    },
    {
      model_name: "simple" model_version: -1
      input_map { key: "a" value: "S" } input_map { key: "b" value: "D" }
      output_map { key: "sum" value: "DOUBLED" }
    }
  ]
}
"""

RUNNING_TOTAL: Final = """
max_batch_size: 8
input [{ name: "x" data_type: TYPE_INT32 dims: [ 1 ] }]
output [{ name: "total" data_type: TYPE_INT32 dims: [ 1 ] }]
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  oldest { max_candidate_sequences: 64 }
  control_input [{
    name: "start"
    control [{ kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] }]
  }]
  state [{
    input_name: "before" output_name: "after" data_type: TYPE_INT32 dims: [ 1 ]
    initial_state { name: "zero" data_type: TYPE_INT32 dims: [ 1 ] zero_data: true }
  }]
}
"""


def running_total() -> bytes:
    """`total` is the sum of all `x` of a sequence so far, kept between `after` and `before`."""
    one = numpy_helper.from_array(np.array([1], np.int32), "one")
    nodes = [
        helper.make_node("Sub", ["one", "start"], ["goes_on"]),
        helper.make_node("Mul", ["before", "goes_on"], ["kept"]),
        helper.make_node("Add", ["kept", "x"], ["total"]),
        helper.make_node("Identity", ["total"], ["after"]),
    ]
    inputs, outputs = (
        [graphs.value(name, "INT32", ["batch", 1]) for name in names]
        for names in (("x", "start", "before"), ("total", "after"))
    )
    return graphs.model(nodes, inputs, outputs, [one])


def problem() -> str:
    """Why the program cannot run here; empty if it can."""
    if not PROGRAM.exists():
        return "no .venv-perf: run through `make test`"
    done = subprocess.run(
        [PROGRAM, "--version"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return "" if done.returncode == 0 else done.stderr.strip()


def environment() -> dict[str, str]:
    return {"LD_LIBRARY_PATH": ":".join(map(str, LIBRARIES)), "PATH": os.environ["PATH"]}


PROBLEM: Final = problem()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(PROBLEM), reason=f"perf_analyzer does not run: {PROBLEM}"),
]


@dataclass(frozen=True, slots=True)
class Measured:
    """What perf_analyzer found at one concurrency."""

    concurrency: int
    per_s: float
    p50_us: float
    p99_us: float
    server_us: Mapping[str, float]

    requests: int
    """Those that it waited for."""

    served: int
    """Those that the server's statistics tell of."""

    inferences: int
    executions: int


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model of each kind that it treats in a way of its own."""
    root = tmp_path_factory.mktemp("perf") / "models"
    graphs.store(root, "simple", graphs.add_and_subtract())
    graphs.store(root, "texts", graphs.identity("BYTES"))
    graphs.store(root, "running_total", running_total())
    (root / "running_total" / "config.pbtxt").write_text(RUNNING_TOTAL)
    (root / "twice" / "1").mkdir(parents=True)
    (root / "twice" / "config.pbtxt").write_text(TWICE)
    return root


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(root: Path) -> AsyncIterator[str]:
    """Where these models are served."""
    address = f"127.0.0.1:{free_port()}"
    async with serving(root, root.parent, address=address):
        yield address


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param("simple", (), id="one at a time"),
        pytest.param("simple", ("--concurrency-range", "1:4:3"), id="a range of concurrency"),
        pytest.param("simple", ("-b", "4", "--async"), id="batches of the caller"),
        pytest.param("simple", ("--streaming", "--async"), id="a stream"),
        pytest.param("simple", ("--request-rate-range", "200"), id="a rate"),
        pytest.param("twice", (), id="a pipeline of models"),
        pytest.param("running_total", ("--sequence-length", "5"), id="sequences"),
        pytest.param(
            "running_total",
            ("--streaming", "--concurrency-range", "4", "--sequence-length", "5"),
            id="sequences in streams",
        ),
        pytest.param("texts", ("--shape", "x:2", "--string-length", "9"), id="texts"),
        pytest.param(
            "simple", ("--grpc-compression-algorithm", "gzip", "--async"), id="compression"
        ),
        pytest.param("simple", ("--trace-level", "TIMESTAMPS"), id="traces"),  # from then on
    ],
)
async def test_it_measures(
    model: str, options: Sequence[str], address: str, tmp_path: Path
) -> None:
    for measured in await measure(tmp_path, "-m", model, "-u", address, "-i", "grpc", *options):
        assert_sane(measured, rows=4 if "-b" in options else 1)


async def test_it_measures_through_shared_memory(root: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    async with serving(root, tmp_path, "--shared-memory", "true", address=address) as process:
        options = ("--shared-memory", "system", "--output-shared-memory-size", "256")
        for measured in await measure(
            tmp_path, "-m", "simple", "-u", address, "-i", "grpc", *options
        ):
            assert_sane(measured)
        stub: pb_grpc.GRPCInferenceServiceAsyncStub = pb_grpc.GRPCInferenceServiceStub(
            process.channel
        )
        left = await stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest())
        assert not left.regions


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="binary tensors"),
        pytest.param(
            ("--input-tensor-format", "json", "--output-tensor-format", "json"), id="JSON"
        ),
    ],
)
async def test_it_measures_over_http(options: Sequence[str], root: Path, tmp_path: Path) -> None:
    port = str(free_port())
    async with serving(root, tmp_path, "--http-port", port):
        url = ("-u", f"127.0.0.1:{port}", "-i", "http")
        for measured in await measure(tmp_path, "-m", "simple", *url, *options):
            assert_sane(measured)


@pytest.mark.asyncio(loop_scope="module")
async def test_it_names_what_it_cannot_measure(address: str, tmp_path: Path) -> None:
    status, output = await perf_analyzer(tmp_path, "-m", "nope", "-u", address, "-i", "grpc")
    assert status != 0
    assert "'nope' is not found" in output


async def measure(folder: Path, *options: str) -> list[Measured]:
    """Run perf_analyzer to its end; return what it found at each load, in its order."""
    report = folder / "report.csv"
    status, output = await perf_analyzer(folder, "-f", str(report), *MEASURE, *options)
    assert status == 0, output
    text = await asyncio.to_thread(report.read_text)
    counts = list(
        zip(
            *(
                [int(count) for count in re.findall(rf"^ {{4}}{name}: (\d+)", output, re.MULTILINE)]
                for name in (
                    "Request count",
                    "Successful request count",
                    "Inference count",
                    "Execution count",
                )
            ),
            strict=True,
        )
    )
    rows = sorted(
        csv.DictReader(text.splitlines()), key=lambda row: float(next(iter(row.values())))
    )
    assert len(rows) == len(counts), output
    return [
        Measured(
            concurrency=int(float(next(iter(row.values())))),
            per_s=float(row["Inferences/Second"]),
            p50_us=float(row["p50 latency"]),
            p99_us=float(row["p99 latency"]),
            server_us={key: float(value) for key, value in row.items() if key.startswith("Server")},
            requests=requests,
            served=served,
            inferences=inferences,
            executions=executions,
        )
        for row, (requests, served, inferences, executions) in zip(rows, counts, strict=True)
    ]


async def perf_analyzer(folder: Path, *options: str) -> tuple[int, str]:
    """Run the program; return its status and all that it wrote."""
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        *options,
        cwd=folder,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode()


def assert_sane(measured: Measured, rows: int = 1) -> None:
    """The server's own account must fit what the client saw."""
    assert measured.requests >= REQUESTS
    assert measured.per_s > 1
    assert 0 < measured.p50_us <= measured.p99_us < 1e6
    # Requests at the edges of a window are counted on one side only.
    assert measured.served == pytest.approx(measured.requests, rel=0.1, abs=3 * 8)
    assert measured.inferences == rows * measured.served
    assert 0 < measured.executions <= measured.served
    assert 0 < sum(measured.server_us.values()) <= measured.p99_us
