"""What callers notice when the version that answers them is replaced.

Asks one model all the time, and measures windows in pairs: in one nothing happens, in the other a
new version is loaded, warmed and made the one that answers, and the old one is unloaded. Prints,
over all pairs, the calls that failed and the latencies of both kinds of windows; the ratio is a
median over the pairs. The server has half of the cores, the callers the others. No throw-away
process opens the graphs first, as none does for versions of a registry.

    python bench/inference_switch.py [--transport fast] [--pairs 6] [--seconds 4] [--concurrency 4]
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from inference_small import METHOD, SHAPES, running, save_conv, until_answered, write

from servery.inference.v1 import grpc_service_pb2 as pb
from servery.inference.v1 import grpc_service_pb2_grpc as pb_grpc

MODEL: Final = "conv"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--transport", choices=("grpcio", "fast"), default="fast")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="of a window, without the switch"
    )
    parser.add_argument("--concurrency", type=int, default=4)
    args = parser.parse_args(argv)
    cores = sorted(os.sched_getaffinity(0))
    half = max(len(cores) // 2, 1)
    os.sched_setaffinity(0, cores[:half])
    with tempfile.TemporaryDirectory() as folder:
        root, address = Path(folder) / "models", f"unix:{folder}/server.sock"
        add_version(root, 1)
        command = [
            *("-m", "servery_inference", "--model-repository", str(root), "--listen", address),
            *("--transport", args.transport, "--log-level", "error"),
            *("--model-control-mode", "explicit", "--load-model", MODEL),
            *("--admission-wall-s", "0"),
        ]
        with running(command):
            os.sched_setaffinity(0, cores[half:] or cores)
            asyncio.run(measure(root, address, args))
    return 0


async def measure(root: Path, address: str, args: argparse.Namespace) -> None:
    """Run the pairs and print the table."""
    shape = SHAPES[MODEL]
    body = pb.ModelInferRequest(
        model_name=MODEL,
        inputs=[{"name": "x", "datatype": "FP32", "shape": shape}],
        raw_input_contents=[np.ones(shape, np.float32).tobytes()],
    ).SerializeToString()
    await until_answered(address, body, None)
    latencies: dict[str, list[float]] = {"quiet": [], "switch": []}
    failures = dict.fromkeys(latencies, 0)
    ratios, took_s = [], []
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = pb_grpc.GRPCInferenceServiceStub(channel)
        for pair in range(args.pairs):
            p99 = {}
            for kind in latencies:
                enough = asyncio.Event()
                asking = asyncio.create_task(window(channel, body, enough, args.concurrency))
                await asyncio.sleep(args.seconds / 2)
                if kind == "switch":
                    took_s.append(await switch(stub, root, pair + 2))
                await asyncio.sleep(args.seconds / 2)
                enough.set()
                seconds, failed = await asking
                latencies[kind] += seconds
                failures[kind] += failed
                p99[kind] = quantile(seconds, 0.99)
            ratios.append(p99["switch"] / p99["quiet"])
    write(
        f"{args.transport}: {args.pairs} pairs of {args.seconds:g} s, concurrency"
        f" {args.concurrency}, {os.cpu_count()} cores; a switch took"
        f" {statistics.median(took_s):.2f} s"
    )
    write(f"{'':7} {'calls':>7} {'failed':>7} {'p50 ms':>7} {'p99 ms':>7} {'max ms':>7}")
    for kind, seconds in latencies.items():
        p50, p99_ms, worst = (quantile(seconds, share) for share in (0.5, 0.99, 1))
        write(f"{kind:7} {len(seconds):7} {failures[kind]:7} {p50:7.2f} {p99_ms:7.2f} {worst:7.2f}")
    write(
        f"p99 with a switch, of that without: {statistics.median(ratios):.2f}"
        f" ({min(ratios):.2f} to {max(ratios):.2f})"
    )


async def window(
    channel: grpc.aio.Channel, body: bytes, enough: asyncio.Event, concurrency: int
) -> tuple[list[float], int]:
    """Ask all the time; return the latencies in seconds, and how many calls failed."""
    call: Any = channel.unary_unary(METHOD)
    latencies, failed = list[float](), 0

    async def one_after_the_other() -> None:
        nonlocal failed
        while not enough.is_set():
            began = time.perf_counter()
            try:
                await call(body)
            except grpc.aio.AioRpcError:
                failed += 1
            else:
                latencies.append(time.perf_counter() - began)

    await asyncio.gather(*[one_after_the_other() for _ in range(concurrency)])
    return latencies, failed


async def switch(stub: Any, root: Path, version: int) -> float:
    """Serve another version; return the seconds until it answers."""
    start = time.perf_counter()
    await asyncio.to_thread(add_version, root, version)
    await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=MODEL))
    ready = pb.ModelReadyRequest(name=MODEL, version=str(version))
    if not (await stub.ModelReady(ready)).ready:
        raise RuntimeError(f"version {version} does not answer")
    await asyncio.to_thread(shutil.rmtree, root / MODEL / str(version - 1))
    return time.perf_counter() - start


def add_version(root: Path, version: int) -> None:
    """Write a version, and show it only when it is whole."""
    draft = root / MODEL / f"draft{version}"
    draft.mkdir(parents=True)
    save_conv(draft / "model.onnx")
    draft.rename(root / MODEL / str(version))


def quantile(seconds: Sequence[float], share: float) -> float:
    """Return a quantile in milliseconds."""
    return sorted(seconds)[min(int(share * len(seconds)), len(seconds) - 1)] * 1e3


if __name__ == "__main__":
    sys.exit(main())
