"""What one request to the inference process costs, beside what it cannot go below.

Measures, in interleaved rounds and under the same load: the inference process on either transport
with one model (a dense one, 784-128-10, or a convolution of a few milliseconds; FP32, one row), a
bare grpc.aio server that answers with a constant of the same size, and `session.run` alone here, as
many at a time as there are cores. Prints CPU microseconds per request of the serving process, user
and system, and requests per second, as medians over the rounds. Only ratios within one run mean
anything.

    python bench/inference_small.py [--model dense] [--rounds 5] [--requests 2000] [--concurrency 8]
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import onnxruntime as ort
import uvloop
from onnx import TensorProto, helper, numpy_helper, save_model

from servery.inference.v1 import grpc_service_pb2 as pb

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
SIZES: Final = (784, 128, 10)
SHAPES: Final = {"dense": (1, SIZES[0]), "conv": (1, 3, 64, 64)}
CHANNELS: Final = 80
TRANSPORTS: Final = ("grpcio", "fast")
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000, help="of each server and round")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--model", choices=SHAPES, default="dense")
    parser.add_argument("--echo", metavar="SOCKET", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.echo:
        uvloop.run(echo(args.echo))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), args.model, args.rounds, args.requests, args.concurrency))
    return 0


async def measure(folder: Path, model: str, rounds: int, requests: int, concurrency: int) -> None:
    """Run the rounds and print the table."""
    graph = folder / "models" / model / "1" / "model.onnx"
    graph.parent.mkdir(parents=True)
    {"dense": save_dense, "conv": save_conv}[model](graph)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    addresses = {name: f"unix:{folder}/{name}.sock" for name in ("echo", *TRANSPORTS)}
    costs: dict[str, list[float]] = {name: [] for name in ("session.run", *addresses)}
    rates: dict[str, list[float]] = {name: [] for name in costs}
    body = request_body(model)
    with ExitStack() as servers:
        pids = {"echo": servers.enter_context(running([__file__, "--echo", addresses["echo"]]))}
        for name in TRANSPORTS:
            command = [
                *("-m", "servery_inference", "--model-repository", str(folder / "models")),
                *("--listen", addresses[name], "--transport", name, "--log-level", "error"),
            ]
            pids[name] = servers.enter_context(running(command))
            await until_answered(addresses[name], body)
        for address in addresses.values():
            await load(address, body, 200, concurrency)  # Warm.
        for _ in range(rounds):
            cost, rate = run_alone(session, SHAPES[model], requests)
            costs["session.run"].append(cost)
            rates["session.run"].append(rate)
            for name, pid in pids.items():
                before, start = cpu_s(pid), time.perf_counter()
                await load(addresses[name], body, requests, concurrency)
                rates[name].append(requests / (time.perf_counter() - start))
                costs[name].append((cpu_s(pid) - before) / requests * 1e6)
    medians = {name: statistics.median(values) for name, values in costs.items()}
    speeds = {name: statistics.median(values) for name, values in rates.items()}
    write(
        f"{model}: {rounds} rounds of {requests} requests, concurrency {concurrency}, 1 row,"
        f" intra-op 1, {os.cpu_count()} cores"
    )
    write(f"{'':12} {'CPU µs/request':>15} {'min':>8} {'max':>8} {'÷ echo':>7} {'requests/s':>11}")
    for name, values in costs.items():
        write(
            f"{name:12} {medians[name]:15.1f} {min(values):8.1f} {max(values):8.1f}"
            f" {medians[name] / medians['echo']:7.2f} {speeds[name]:11.0f}"
        )
    own = medians["grpcio"] - medians["echo"] - medians["session.run"]
    write(f"of inference on grpcio, neither transport nor model: {own:.1f} µs")
    for name in TRANSPORTS:
        share = speeds[name] / speeds["session.run"]
        write(f"throughput of {name}, of that in process: {share:.0%}")


async def until_answered(address: str, body: bytes) -> None:
    """Return once the model is loaded."""
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(60):
        call: Any = channel.unary_unary(METHOD)
        while True:
            try:
                await call(body, wait_for_ready=True)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                await asyncio.sleep(0.1)


async def load(address: str, body: bytes, requests: int, concurrency: int) -> None:
    """Send `body` `requests` times over one channel, `concurrency` at a time."""
    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), 30)
        call: Any = channel.unary_unary(METHOD)
        left = iter(range(requests))

        async def one_after_the_other() -> None:
            for _ in left:
                await call(body)

        await asyncio.gather(*[one_after_the_other() for _ in range(concurrency)])


async def echo(address: str) -> None:
    """Serve a constant answer at `address` with nothing around it."""
    answer = pb.ModelInferResponse(
        model_name="dense",
        model_version="1",
        outputs=[{"name": "y", "datatype": "FP32", "shape": [1, SIZES[-1]]}],
        raw_output_contents=[bytes(4 * SIZES[-1])],
    ).SerializeToString()

    async def infer(request: bytes, context: Any) -> bytes:  # noqa: ARG001  grpc's signature
        return answer

    server = grpc.aio.server()
    service, method = METHOD.strip("/").split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(infer)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    server.add_insecure_port(address)
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
    session: ort.InferenceSession, shape: Sequence[int], requests: int
) -> tuple[float, float]:
    """Return the CPU microseconds of one `session.run`, and how many a second all cores do."""
    feed = {"x": np.ones(shape, np.float32)}
    cores = len(os.sched_getaffinity(0))

    def share(_: int) -> None:
        for _ in range(requests // cores):
            session.run(["y"], feed)

    cpu, start = time.process_time(), time.perf_counter()
    with ThreadPoolExecutor(cores) as threads:
        list(threads.map(share, range(cores)))
    done = requests // cores * cores
    return (
        (time.process_time() - cpu) / done * 1e6,
        done / (time.perf_counter() - start),
    )


def cpu_s(pid: int) -> float:
    """Return the CPU seconds, user and system, that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


@contextmanager
def running(arguments: Sequence[str]) -> Iterator[int]:
    """Run Python with `arguments` for the length of the block; give its process id."""
    process = subprocess.Popen([sys.executable, *arguments])  # noqa: S603  our own programs
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


def write(line: str) -> None:
    """Print one line."""
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
