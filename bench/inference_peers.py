"""Servery's inference process beside other servers, on the same models under the same load.

Measures, in interleaved rounds: the inference process over each of its transports, a bare grpc.aio
server that answers with a constant, `session.run` alone in this process, a C++ gRPC server over
ONNX Runtime where it can be built (a thread per core), and whichever peers an interpreter is given
for, each set up as its own documentation shows (`bench/peers/`): MLServer, KServe's Python server,
NVIDIA's pytriton. A small dense model (784-128-10) and a convolutional one
of about 2.5 ms, one row each, over gRPC on loopback. Prints CPU microseconds per request of the
whole process tree of a server, and throughput, p50 and p99 as this process sees them: it shares
the cores, so only ratios within one run mean anything. The bound is the echo and `session.run`
together.

    python bench/inference_peers.py [--mlserver PYTHON] [--kserve PYTHON] [--pytriton PYTHON]

A peer's PYTHON is that of an environment of its own, such as one made by one of

    pip install mlserver==1.7.1 onnxruntime==1.31.1 'setuptools<81' 'uvloop<0.22'
    pip install -r requirements/kserve.txt onnxruntime==1.31.1
    pip install nvidia-pytriton==0.7.0 onnxruntime==1.31.1

The last one brings an interpreter that runs the standard library of the environment's Python, and
does not start on that of every 3.11: it does on 3.11.2, not on 3.11.7.
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import onnxruntime as ort
import uvloop
from cpp_peer import CannotBuildError, build
from inference_small import METHOD, SIZES, TICKS_PER_S, save_dense, write
from onnx import TensorProto, helper, numpy_helper, save_model

from servery.inference.v1 import grpc_service_pb2 as pb

HERE: Final = Path(__file__).parent
PEERS: Final = ("mlserver", "kserve", "pytriton")
SHAPES: Final[Mapping[str, tuple[int, ...]]] = {"dense": (1, SIZES[0]), "conv": (1, 3, 64, 64)}
REQUESTS: Final = {"dense": 600, "conv": 120}
CONCURRENCY: Final = (1, 8, 32)
START_S: Final = 90
FLOOR: Final = "session.run"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one server did under one load in one round."""

    cpu_us: float
    per_s: float
    p50_ms: float
    p99_ms: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    for peer in PEERS:
        parser.add_argument(f"--{peer}", metavar="PYTHON", help=f"interpreter that has {peer}")
    args = parser.parse_args(argv)
    pythons = {peer: getattr(args, peer) for peer in PEERS if getattr(args, peer)}
    for peer in PEERS:
        if peer not in pythons:
            write(f"{peer} is left out: no --{peer}")
    with tempfile.TemporaryDirectory() as folder:
        uvloop.run(measure(Path(folder), args.rounds, pythons))
    return 0


async def measure(folder: Path, rounds: int, pythons: Mapping[str, str]) -> None:
    """Run the rounds and print the tables."""
    models = folder / "models"
    graphs = {name: models / name / "1" / "model.onnx" for name in SHAPES}
    for graph in graphs.values():
        graph.parent.mkdir(parents=True)
    save_dense(graphs["dense"])
    save_conv(graphs["conv"])
    floors = {name: open_alone(graph) for name, graph in graphs.items()}
    samples: dict[tuple[str, int], dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    async with AsyncExitStack() as stack:
        servers = {
            "fast": await stack.enter_async_context(servery(models, "fast")),
            "grpcio": await stack.enter_async_context(servery(models, "grpcio")),
            "echo": await stack.enter_async_context(echo()),
        }
        try:
            servers["C++"] = await stack.enter_async_context(cpp(build(), models))
        except CannotBuildError as error:
            write(f"C++ is left out: {error}")
        for peer, python in pythons.items():
            servers[peer] = await stack.enter_async_context(START[peer](python, models, folder))
        for server in servers.values():
            for model in SHAPES:
                await until_ready(server, model)
                await load(server, model, 64, 8)  # Warm.
        for _ in range(rounds):
            for model, requests in REQUESTS.items():
                alone = run_alone(floors[model], model, requests)
                for concurrency in CONCURRENCY:
                    cell = samples[model, concurrency]
                    cell[FLOOR].append(alone)
                    for name, server in servers.items():
                        cell[name].append(await load(server, model, requests, concurrency))
    for (model, concurrency), cell in samples.items():
        report(model, concurrency, cell)


def report(model: str, concurrency: int, cell: Mapping[str, Sequence[Sample]]) -> None:
    """Print one table: medians over the rounds, and the least and the most of CPU."""
    rounds = len(cell[FLOOR])
    write(f"\n{model}, concurrency {concurrency}, {rounds} rounds of {REQUESTS[model]} requests")
    write(
        f"{'':12}{'CPU µs/req':>11}{'(min-max)':>14}{'÷ bound':>9}{'req/s':>8}"
        f"{'p50 ms':>8}{'p99 ms':>8}"
    )
    bound = median(cell["echo"], "cpu_us") + median(cell[FLOOR], "cpu_us")
    for name, samples in cell.items():
        cpu = [sample.cpu_us for sample in samples]
        write(
            f"{name:12}{median(samples, 'cpu_us'):11.0f}{f'{min(cpu):.0f}-{max(cpu):.0f}':>14}"
            f"{median(samples, 'cpu_us') / bound:9.2f}{median(samples, 'per_s'):8.0f}"
            f"{median(samples, 'p50_ms'):8.2f}{median(samples, 'p99_ms'):8.2f}"
        )


def median(samples: Iterable[Sample], field: str) -> float:
    """Return the median of one number over the rounds."""
    return statistics.median(getattr(sample, field) for sample in samples)


@dataclass(frozen=True, slots=True)
class Server:
    """A running process and a channel to it."""

    pid: int
    channel: grpc.aio.Channel


async def load(server: Server, model: str, requests: int, concurrency: int) -> Sample:
    """Send `requests` requests over one channel, `concurrency` at a time."""
    body = request_body(model)
    call: Any = server.channel.unary_unary(METHOD)
    left = iter(range(requests))
    latencies: list[float] = []

    async def one_after_the_other() -> None:
        for _ in left:
            begun = time.perf_counter()
            await call(body)
            latencies.append(time.perf_counter() - begun)

    cpu, start = tree_cpu_s(server.pid), time.perf_counter()
    await asyncio.gather(*[one_after_the_other() for _ in range(concurrency)])
    seconds = time.perf_counter() - start
    cpu = tree_cpu_s(server.pid) - cpu
    return sample_of(cpu, seconds, latencies)


def run_alone(session: ort.InferenceSession, model: str, requests: int) -> Sample:
    """Run a graph in this process, as often as a server is asked."""
    feed = {"x": np.ones(SHAPES[model], np.float32)}
    latencies: list[float] = []
    cpu, start = time.process_time(), time.perf_counter()
    for _ in range(requests):
        begun = time.perf_counter()
        session.run(["y"], feed)
        latencies.append(time.perf_counter() - begun)
    return sample_of(time.process_time() - cpu, time.perf_counter() - start, latencies)


def sample_of(cpu_s: float, seconds: float, latencies: Sequence[float]) -> Sample:
    """Sum one load up."""
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    return Sample(cpu_s / len(latencies) * 1e6, len(latencies) / seconds, p50, p99)


async def until_ready(server: Server, model: str) -> None:
    """Return once the server answers.

    Raises:
        TimeoutError: It does not in time.
    """
    call: Any = server.channel.unary_unary(METHOD)
    body = request_body(model)
    async with asyncio.timeout(START_S):
        while True:
            try:
                await call(body, timeout=10)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.2)
            else:
                return


@asynccontextmanager
async def process(
    port: int, *command: str | Path, folder: Path | None = None, **environment: str
) -> AsyncIterator[Server]:
    """Run a server for the length of the block."""
    running = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,  # What goes wrong is on standard error.
        start_new_session=True,
    )
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Server(running.pid, channel)
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.terminate()
        try:
            await asyncio.wait_for(running.wait(), 20)
        except TimeoutError:
            os.killpg(running.pid, signal.SIGKILL)  # Its own group, workers included.
            await running.wait()


@asynccontextmanager
async def servery(models: Path, transport: str) -> AsyncIterator[Server]:
    """Serve `models` with Servery."""
    port = free_port()
    command = ("-m", "servery_inference", "--model-repository", models, "--grpc-port", str(port))
    options = ("--transport", transport, "--log-level", "error")
    async with process(port, sys.executable, *command, *options) as server:
        yield server


@asynccontextmanager
async def echo() -> AsyncIterator[Server]:
    """Serve a constant with nothing around it."""
    port = free_port()
    command = (HERE / "inference_small.py", "--echo", "grpcio", f"127.0.0.1:{port}")
    async with process(port, sys.executable, *command) as server:
        yield server


@asynccontextmanager
async def cpp(server: Path, models: Path) -> AsyncIterator[Server]:
    """Serve `models` with the C++ peer."""
    port = free_port()
    async with process(port, server, f"127.0.0.1:{port}", models, str(os.cpu_count())) as running:
        yield running


@asynccontextmanager
async def mlserver(python: str, models: Path, folder: Path) -> AsyncIterator[Server]:
    """Serve `models` with MLServer."""
    http, grpc_port, metrics = free_port(), free_port(), free_port()
    root = folder / "mlserver"
    for name in SHAPES:
        graph = models / name / "1" / "model.onnx"
        (root / name).mkdir(parents=True)
        settings: dict[str, Any] = {
            "name": name,
            "implementation": "mlserver_runtime.OnnxRuntime",
            "parameters": {"uri": str(graph)},
        }
        (root / name / "model-settings.json").write_text(json.dumps(settings))
    ports = {"http_port": http, "grpc_port": grpc_port, "metrics_port": metrics}
    (root / "settings.json").write_text(json.dumps({"debug": False, "host": "127.0.0.1", **ports}))
    command = (Path(python).with_name("mlserver"), "start", root)
    async with process(grpc_port, *command, folder=root, PYTHONPATH=str(HERE / "peers")) as server:
        yield server


@asynccontextmanager
async def kserve(python: str, models: Path, folder: Path) -> AsyncIterator[Server]:
    """Serve `models` with KServe's Python server."""
    async with script(python, "kserve_server.py", models, folder) as server:
        yield server


@asynccontextmanager
async def pytriton(python: str, models: Path, folder: Path) -> AsyncIterator[Server]:
    """Serve `models` with pytriton."""
    async with script(python, "pytriton_server.py", models, folder) as server:
        yield server


@asynccontextmanager
async def script(python: str, name: str, models: Path, folder: Path) -> AsyncIterator[Server]:
    """Run a program of `bench/peers` for the length of the block."""
    port = free_port()
    ports = ("--grpc-port", str(port), "--http-port", str(free_port()))
    command = (python, HERE / "peers" / name, "--models", models, *ports)
    async with process(port, *command, folder=folder) as server:
        yield server


START: Final = {"mlserver": mlserver, "kserve": kserve, "pytriton": pytriton}


def tree_cpu_s(root: int) -> float:
    """Return the CPU seconds, user and system, that a process and all below it have used."""
    parents: dict[int, int] = {}
    used: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # It has just ended.
            continue
        pid = int(path.parent.name)
        parents[pid] = int(fields[1])
        used[pid] = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    tree, last = {root}, 0
    while len(tree) != last:
        last = len(tree)
        tree |= {pid for pid, parent in parents.items() if parent in tree}
    return sum(used.get(pid, 0.0) for pid in tree)


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def request_body(model: str) -> bytes:
    """A serialized request of one row."""
    shape = SHAPES[model]
    return pb.ModelInferRequest(
        model_name=model,
        inputs=[{"name": "x", "datatype": "FP32", "shape": shape}],
        raw_input_contents=[np.ones(shape, np.float32).tobytes()],
    ).SerializeToString()


def open_alone(graph: Path) -> ort.InferenceSession:
    """Open a graph on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def save_conv(path: Path) -> None:
    """Write three convolutions, a mean over the image and a linear layer."""
    random = np.random.default_rng(0)
    layers = ((64, 3, 1), (128, 64, 2), (128, 128, 1))
    nodes, weights, last = [], [], "x"
    for index, (channels, of, stride) in enumerate(layers):
        values = random.normal(scale=0.1, size=(channels, of, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{index}"))
        nodes += [
            helper.make_node(
                "Conv", [last, f"w{index}"], [f"c{index}"], pads=[1] * 4, strides=[stride] * 2
            ),
            helper.make_node("Relu", [f"c{index}"], [f"r{index}"]),
        ]
        last = f"r{index}"
    values = random.normal(size=(128, 10)).astype(np.float32)
    weights.append(numpy_helper.from_array(values, "dense"))
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *SHAPES["conv"][1:]])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])]
    graph = helper.make_graph(nodes, "conv", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 18)]
    save_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


if __name__ == "__main__":
    sys.exit(main())
