"""What one request to the inference process costs, beside what it cannot go below.

Measures, in interleaved rounds and under the same load: the inference process on either transport
with one model (dense: 784-128-10; conv: a convolution of a few milliseconds; image and big: the
mean of 600 KB and of 16 MB; FP32, one row), a bare server on either transport that answers with a
constant of the same size, a C++ gRPC server over ONNX Runtime (`peers/cpp`) where it can be built,
on one thread and on as many as cores, and `session.run` alone here, as many at a time as cores. The
load (transport_load.py) comes from this process and keeps so many requests open over a number of
connections. Prints CPU microseconds per request of the serving process, user and system, all
threads, as the median over the rounds, and requests per second. Only ratios within one run mean
anything.

    python bench/inference_small.py [--model dense] [--concurrency 1 8 32] [--connections 1] [--tls]
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import argparse
import asyncio
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import onnxruntime as ort
import uvloop
from cpp_peer import CannotBuildError, build
from onnx import TensorProto, helper, numpy_helper, save_model
from transport_load import FIELDS, Load
from transport_small import certificate

import servery_h2
from servery.inference.v1 import grpc_service_pb2 as pb

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
SIZES: Final = (784, 128, 10)
SHAPES: Final = {
    "dense": (1, SIZES[0]),
    "conv": (1, 3, 64, 64),
    "image": (1, 150_000),
    "big": (1, 4_000_000),
}
CHANNELS: Final = 80
ECHOES: Final = ("grpcio", "fast")
TRANSPORTS: Final = ("grpcio", "fast")
CPP: Final = "C++"
FLOOR: Final = "session.run"
BASE: Final = "echo on grpcio"
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
MAX_MESSAGE_BYTES: Final = 64 << 20
START_S: Final = 60


@dataclass(frozen=True, slots=True)
class Case:
    """What is sent, and how."""

    model: str
    connections: int
    seconds: float
    """Of each load."""

    tls: Path | None
    """Folder with `cert.pem` and `key.pem`; None for plain text."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each load")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--model", choices=SHAPES, default="dense")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--echo", nargs=2, metavar=("TRANSPORT", "ADDRESS"), help=argparse.SUPPRESS)
    parser.add_argument("--tls-dir", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.echo:
        uvloop.run(echo(*args.echo, args.tls_dir))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        tls = Path(folder) if args.tls else None
        if tls:
            certificate(tls)
        case = Case(args.model, args.connections, args.seconds, tls)
        uvloop.run(measure(Path(folder), case, args.rounds, args.concurrency))
    return 0


async def measure(folder: Path, case: Case, rounds: int, concurrency: Sequence[int]) -> None:
    """Run the rounds and print the table."""
    graph = folder / "models" / case.model / "1" / "model.onnx"
    graph.parent.mkdir(parents=True)
    save = {"dense": save_dense, "conv": save_conv}.get(case.model, partial(save_mean, case.model))
    save(graph)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    costs: dict[tuple[str, int], list[float]] = defaultdict(list)
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    body = request_body(case.model)
    with ExitStack() as stack:
        servers = {
            name: (stack.enter_context(program(command)), port)
            for name, (command, port) in commands(folder, case.tls).items()
        }
        for _, port in servers.values():
            await until_answered(f"127.0.0.1:{port}", body, case.tls)
            await load(case, port, body, concurrency[-1])  # Warm.
        for _ in range(rounds):
            for at_once in concurrency:
                cost, rate = run_alone(session, SHAPES[case.model], case.seconds)
                costs[FLOOR, at_once].append(cost)
                rates[FLOOR, at_once].append(rate)
                for name, (pid, port) in servers.items():
                    before = cpu_s(pid)
                    done = await load(case, port, body, at_once)
                    costs[name, at_once].append((cpu_s(pid) - before) / done * 1e6)
                    rates[name, at_once].append(done / case.seconds)
    write(
        f"{case.model}: {rounds} rounds of {case.seconds} s, {case.connections} connections,"
        f" {'TLS' if case.tls else 'plain'}, 1 row, intra-op 1, {os.cpu_count()} cores"
    )
    write(f"{'':16} at once {'CPU µs':>10} {'min':>8} {'max':>8} {'÷ echo':>6} {'req/s':>8}")
    for at_once in concurrency:
        base = statistics.median(costs[BASE, at_once])
        for name in (FLOOR, *servers):
            values, rate = costs[name, at_once], statistics.median(rates[name, at_once])
            cost = statistics.median(values)
            write(
                f"{name:16} {at_once:7} {cost:10.1f} {min(values):8.1f} {max(values):8.1f}"
                f" {cost / base:6.2f} {rate:8.0f}"
            )


def commands(folder: Path, tls: Path | None) -> dict[str, tuple[list[str], int]]:
    """Return the command and the port of each server."""
    found: dict[str, tuple[list[str], int]] = {}
    for name in ECHOES:
        port = free_port()
        secured = ["--tls-dir", str(tls)] if tls else []
        command = [sys.executable, __file__, "--echo", name, f"127.0.0.1:{port}"]
        found[f"echo on {name}"] = [*command, *secured], port
    for name in TRANSPORTS:
        port = free_port()
        secured = []
        if tls:
            secured = ["--tls-certificate", f"{tls}/cert.pem", "--tls-key", f"{tls}/key.pem"]
        command = [
            *(sys.executable, "-m", "servery_inference"),
            *("--model-repository", str(folder / "models")),
            *("--listen", f"127.0.0.1:{port}", "--transport", name, "--log-level", "error"),
        ]
        found[name] = [*command, *secured], port
    try:
        server = build()
    except CannotBuildError as error:
        write(f"{CPP} is left out: {error}")
    else:
        secured = [f"{tls}/cert.pem", f"{tls}/key.pem"] if tls else []
        for threads in ("1", str(os.cpu_count())):
            port = free_port()
            command = [str(server), f"127.0.0.1:{port}", str(folder / "models"), threads]
            found[f"{CPP}, {threads} thr."] = [*command, *secured], port
    return found


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def until_answered(address: str, body: bytes, tls: Path | None) -> None:
    """Return once the model is loaded."""
    options = [("grpc.max_send_message_length", MAX_MESSAGE_BYTES)]
    if tls:
        trusted = grpc.ssl_channel_credentials((tls / "cert.pem").read_bytes())
        channel = grpc.aio.secure_channel(address, trusted, options)
    else:
        channel = grpc.aio.insecure_channel(address, options)
    async with channel, asyncio.timeout(START_S):
        call: Any = channel.unary_unary(METHOD)
        while True:
            try:
                await call(body, wait_for_ready=True)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                await asyncio.sleep(0.1)


async def load(case: Case, port: int, body: bytes, concurrency: int) -> int:
    """Keep `concurrency` requests open for a while; return how many were answered."""
    loop = asyncio.get_running_loop()
    tls = None
    if case.tls:
        tls = ssl.create_default_context(cafile=case.tls / "cert.pem")
        tls.set_alpn_protocols(["h2"])
    fields = [*FIELDS]
    fields[2] = (":path", METHOD)
    connections = min(case.connections, concurrency)
    end = time.perf_counter() + case.seconds
    loads = []
    for _ in range(connections):
        make = partial(Load, concurrency // connections, body, end, fields)
        _, one = await loop.create_connection(make, "127.0.0.1", port, ssl=tls)
        loads.append(one)
    await asyncio.wait([one.done for one in loads], timeout=case.seconds + 10)
    if failed := sum(one.failed for one in loads):
        raise RuntimeError(f"{failed} requests failed")
    return sum(len(one.latencies_s) for one in loads)


async def echo(transport: str, address: str, tls: Path | None) -> None:
    """Serve a constant answer at `address` with nothing around it."""
    answer = pb.ModelInferResponse(
        model_name="dense",
        model_version="1",
        outputs=[{"name": "y", "datatype": "FP32", "shape": [1, SIZES[-1]]}],
        raw_output_contents=[bytes(4 * SIZES[-1])],
    ).SerializeToString()

    async def infer(request: bytes, context: Any) -> bytes:  # noqa: ARG001  grpc's signature
        return answer

    server: Any
    if transport == "fast":
        limits = servery_h2.Limits(
            max_receive_message_bytes=MAX_MESSAGE_BYTES, stream_window_bytes=MAX_MESSAGE_BYTES
        )
        server = servery_h2.Server(limits=limits)
        server.add_raw_unary_handler(METHOD, lambda _, __: answer)
    else:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)])
        service, method = METHOD.strip("/").split("/")
        handlers = {method: grpc.unary_unary_rpc_method_handler(infer)}
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    if tls is None:
        server.add_insecure_port(address)
    elif transport == "fast":
        server.add_tls_port(address, servery_h2.TlsFiles(tls / "cert.pem", tls / "key.pem"))
    else:
        pair = (tls / "key.pem").read_bytes(), (tls / "cert.pem").read_bytes()
        server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    await server.start()
    await server.wait_for_termination()


def request_body(model: str) -> bytes:
    """A serialized request of one row."""
    shape = SHAPES[model]
    return pb.ModelInferRequest(
        model_name=model,
        inputs=[{"name": "x", "datatype": "FP32", "shape": shape}],
        raw_input_contents=[np.ones(shape, np.float32).tobytes()],
    ).SerializeToString()


def run_alone(
    session: ort.InferenceSession, shape: Sequence[int], seconds: float
) -> tuple[float, float]:
    """Return the CPU microseconds of one `session.run`, and how many a second all cores do."""
    feed = {"x": np.ones(shape, np.float32)}
    cores = len(os.sched_getaffinity(0))
    end = time.perf_counter() + seconds

    def share(_: int) -> int:
        done = 0
        while time.perf_counter() < end:
            session.run(["y"], feed)
            done += 1
        return done

    cpu = time.process_time()
    with ThreadPoolExecutor(cores) as threads:
        done = sum(threads.map(share, range(cores)))
    return (time.process_time() - cpu) / done * 1e6, done / seconds


def cpu_s(pid: int) -> float:
    """Return the CPU seconds, user and system, that a process and its threads have used."""
    return time.clock_gettime(~pid << 3 | 2)  # Its clock, as clock_getcpuclockid(3) makes it.


@contextmanager
def running(arguments: Sequence[str]) -> Iterator[int]:
    """Run Python with `arguments` for the length of the block; give its process id."""
    with program([sys.executable, *arguments]) as pid:
        yield pid


@contextmanager
def program(command: Sequence[str]) -> Iterator[int]:
    """Run a program for the length of the block; give its process id."""
    process = subprocess.Popen(command)  # noqa: S603  our own programs
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def save_dense(path: Path) -> None:
    """Write the model."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in (("w0", SIZES[:2]), ("w1", SIZES[1:]))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w1"], ["y"]),
    ]
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("x", SIZES[0]), ("y", SIZES[-1]))
    ]
    graph = helper.make_graph(nodes, "dense", tensors[:1], tensors[1:], weights)
    opsets = [helper.make_opsetid("", 18)]
    save_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def save_conv(path: Path) -> None:
    """Write the model: two convolutions over 64 x 64 points."""
    random = np.random.default_rng(0)
    shapes = ((CHANNELS, 3, 3, 3), (CHANNELS, CHANNELS, 3, 3))
    weights = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in zip(("w0", "w1"), shapes, strict=True)
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["y"]),
    ]
    tensors = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *SHAPES["conv"][1:]]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CHANNELS, 1, 1]),
    ]
    graph = helper.make_graph(nodes, "conv", tensors[:1], tensors[1:], weights)
    opsets = [helper.make_opsetid("", 18)]
    save_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def save_mean(model: str, path: Path) -> None:
    """Write the model: the mean of each row."""
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[1])
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("x", SHAPES[model][1]), ("y", 1))
    ]
    graph = helper.make_graph([node], model, tensors[:1], tensors[1:])
    opsets = [helper.make_opsetid("", 17)]
    save_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def write(line: str) -> None:
    """Print one line."""
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
