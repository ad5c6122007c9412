"""What is left of an inference server when more is asked of it than it can do.

Finds out how much it does at most, then offers requests at fixed times, whether or not others are
answered: at 1, 2 and 5 times of that, in rounds. Every request has a deadline, as far away as 10
requests take. Prints how many are answered by their deadlines, of what the best load of the round
had (a median over the rounds), and over all rounds how fast the others are refused and what that
costs. The server has half of the cores, the load the others.

    python bench/inference_overload.py [--transport fast] [--rounds 9] [--seconds 2]
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from inference_small import METHOD, cpu_s, running, until_answered, write
from onnx import TensorProto, helper, numpy_helper, save_model

from servery.inference.v1 import grpc_service_pb2 as pb

LOADS: Final = (1, 2, 5)
SHAPE: Final = (1, 3, 1, 1)
CHANNELS: Final = 80
LAYERS: Final = 7
SIDE: Final = 64
QUICK_S: Final = 0.01
RUNS_TO_DEADLINE: Final = 10
HINT: Final = "grpc-retry-pushback-ms"
DETAILS: Final = "grpc-status-details-bin"
"""Only the server's own refusals have them."""


@dataclass(slots=True)
class Outcome:
    """What became of the requests of one load."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    refusing_s: float = 0.0
    answered_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    hints: int = 0
    late: int = 0

    @property
    def goodput(self) -> float:
        """Answers a second that were there by their deadlines."""
        return len(self.answered_s) / self.seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--transport", choices=("grpcio", "fast"), default="fast")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load and round")
    args = parser.parse_args(argv)
    cores = sorted(os.sched_getaffinity(0))
    half = max(len(cores) // 2, 1)
    os.sched_setaffinity(0, cores[:half])
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "models" / "conv" / "1" / "model.onnx"
        graph.parent.mkdir(parents=True)
        save_slow(graph)
        address = f"unix:{folder}/server.sock"
        command = [
            *("-m", "servery_inference", "--model-repository", f"{folder}/models"),
            *("--listen", address, "--transport", args.transport, "--log-level", "error"),
        ]
        with running(command) as pid:
            os.sched_setaffinity(0, cores[half:] or cores)
            asyncio.run(measure(address, pid, args.transport, args.rounds, args.seconds))
    return 0


async def measure(address: str, pid: int, transport: str, rounds: int, seconds: float) -> None:
    """Run the rounds and print the table."""
    body = pb.ModelInferRequest(
        model_name="conv",
        inputs=[{"name": "x", "datatype": "FP32", "shape": SHAPE}],
        raw_input_contents=[np.ones(SHAPE, np.float32).tobytes()],
    ).SerializeToString()
    await until_answered(address, body, None)
    await saturate(address, pid, body, seconds)  # Warm.
    outcomes: dict[int, list[Outcome]] = {times: [] for times in LOADS}
    shares: dict[int, list[float]] = {times: [] for times in LOADS}
    capacities: list[float] = []
    for _ in range(rounds):
        # Other processes take their part of the machine, and not always the same.
        capacity, answer_s = await saturate(address, pid, body, seconds)
        capacities.append(capacity)
        for times in LOADS:
            deadline_s = RUNS_TO_DEADLINE / capacity
            outcome = await offer(address, pid, body, times * capacity, deadline_s, seconds)
            outcome.refusing_s = outcome.cpu_s - len(outcome.answered_s) * answer_s
            outcomes[times].append(outcome)
        peak = max(outcomes[times][-1].goodput for times in LOADS)
        for times in LOADS:
            shares[times].append(outcomes[times][-1].goodput / peak)
    write(
        f"{transport}: saturated {min(capacities):.0f} to {max(capacities):.0f}/s, deadline"
        f" {RUNS_TO_DEADLINE} times that long; {rounds} rounds of {seconds:g} s,"
        f" {os.cpu_count()} cores"
    )
    write(
        f"{'load':>5} {'of peak':>8} {'p50 ms':>7} {'p99 ms':>7} {'answered':>8} {'late':>6}"
        f" {'refused':>7} {'p50 ms':>7} {'p99 ms':>7} {'<10 ms':>7} {'hinted':>7}"
        f" {'CPU µs/refusal':>15}"
    )
    for times in LOADS:
        answered = [s for each in outcomes[times] for s in each.answered_s]
        refused = [s for each in outcomes[times] for s in each.refused_s]
        late = sum(each.late for each in outcomes[times])
        hinted = sum(each.hints for each in outcomes[times]) / max(len(refused), 1)
        quick = sum(s < QUICK_S for s in refused) / max(len(refused), 1)
        spent = sum(each.refusing_s for each in outcomes[times]) / max(len(refused), 1)
        write(
            f"{times:4}x {statistics.median(shares[times]):8.1%}"
            f" {quantile(answered, 0.5):7.1f} {quantile(answered, 0.99):7.1f}"
            f" {len(answered):8} {late:6} {len(refused):7}"
            f" {quantile(refused, 0.5):7.1f} {quantile(refused, 0.99):7.1f} {quick:7.1%}"
            f" {hinted:7.1%} {spent * 1e6 if times > 1 else float('nan'):15.0f}"
        )


async def saturate(address: str, pid: int, body: bytes, seconds: float) -> tuple[float, float]:
    """Ask as fast as it answers; return the answers a second and the CPU seconds of each."""
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(METHOD)
        await call(body)
        answered, before, start = 0, cpu_s(pid), time.perf_counter()
        end = start + seconds

        async def one_after_the_other() -> None:
            nonlocal answered
            while time.perf_counter() < end:
                await call(body)
                answered += 1

        await asyncio.gather(*[one_after_the_other() for _ in range(4)])
        return answered / (time.perf_counter() - start), (cpu_s(pid) - before) / answered


async def offer(
    address: str, pid: int, body: bytes, rate: float, deadline_s: float, seconds: float
) -> Outcome:
    """Send `rate` requests a second, come what may."""
    outcome = Outcome()
    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), 30)
        call: Any = channel.unary_unary(METHOD)

        async def ask() -> None:
            began = time.perf_counter()
            try:
                await call(body, timeout=deadline_s)
            except grpc.aio.AioRpcError as error:
                metadata = dict(error.trailing_metadata() or ())
                if DETAILS not in metadata:
                    outcome.late += 1
                    return
                outcome.refused_s.append(time.perf_counter() - began)
                outcome.hints += HINT in metadata
                return
            outcome.answered_s.append(time.perf_counter() - began)

        asked: set[asyncio.Task[None]] = set()
        before, start = cpu_s(pid), time.perf_counter()
        for at in range(int(rate * seconds)):
            await asyncio.sleep(max(start + at / rate - time.perf_counter(), 0))
            asked.add(task := asyncio.create_task(ask()))
            task.add_done_callback(asked.discard)
        outcome.seconds = time.perf_counter() - start
        await asyncio.gather(*asked)
        outcome.cpu_s = cpu_s(pid) - before
    return outcome


def save_slow(path: Path) -> None:
    """Write a model of ten milliseconds: convolutions over an image made of three numbers."""
    random = np.random.default_rng(0)
    ones = np.ones((1, *SHAPE[1:2], SIDE, SIDE), np.float32)
    weights = [numpy_helper.from_array(ones, "ones")]
    nodes = [helper.make_node("Mul", ["x", "ones"], ["c0"])]
    for layer in range(LAYERS):
        matrix = random.normal(size=(CHANNELS, CHANNELS if layer else SHAPE[1], 3, 3))
        weights.append(numpy_helper.from_array(matrix.astype(np.float32), f"w{layer}"))
        names = [f"c{layer}", f"w{layer}"]
        nodes.append(helper.make_node("Conv", names, [f"c{layer + 1}"], pads=[1, 1, 1, 1]))
    nodes.append(helper.make_node("GlobalAveragePool", [f"c{LAYERS}"], ["y"]))
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size, 1, 1])
        for name, size in (("x", SHAPE[1]), ("y", CHANNELS))
    ]
    graph = helper.make_graph(nodes, "slow", tensors[:1], tensors[1:], weights)
    opsets = [helper.make_opsetid("", 18)]
    save_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def quantile(seconds: Sequence[float], share: float) -> float:
    """Return a quantile in milliseconds, or NaN of nothing."""
    if not seconds:
        return float("nan")
    return sorted(seconds)[min(int(share * len(seconds)), len(seconds) - 1)] * 1e3


if __name__ == "__main__":
    sys.exit(main())
