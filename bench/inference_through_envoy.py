"""What Envoy adds to an inference request, and what is left of a fast server behind it.

Three ways to one inference process, interleaved in one run: straight to its socket; through an
Envoy that only routes; through the chain of the gateway (token, limits, model, permission, usage).
With --tls clients speak TLS to the Envoy that only routes, and the chain is left out. The models
are those of inference_small.py, under the name that the chain lets through. Prints CPU microseconds
per request of Envoy and of the inference process, all threads, and throughput, p50 and p99 as the
load sees them, which shares the cores: medians over the rounds, to be compared within one run only.

    python bench/inference_through_envoy.py [--model dense] [--concurrency 1 8 32] [--tls]
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import uvloop
from gateway_chain import cpu_s, envoy, free_port, gateway, process, router_only
from inference_small import METHOD, SHAPES, save_conv, save_dense, save_mean
from transport_load import FIELDS, Load
from transport_small import certificate

from servery.inference.v1 import grpc_service_pb2 as pb
from servery_gateway.snapshot import Resource

MODEL = "digits"
START_S = 60
NUM_TENANTS = 10


@dataclass(frozen=True)
class Way:
    """One way to the inference process."""

    address: str
    """`host:port`, or the path of a socket."""

    pids: dict[str, int]
    token: str = ""
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True)
class Sample:
    """What one load saw, and cost."""

    us: dict[str, float]
    """CPU a request, by process."""

    per_s: float
    p50_ms: float
    p99_ms: float


async def load(way: Way, body: bytes, at_once: int, seconds: float) -> Sample:
    """Keep requests open on one connection for a while.

    Raises:
        RuntimeError: A request was not answered.
    """
    loop = asyncio.get_running_loop()
    fields = [(name, METHOD if name == ":path" else value) for name, value in FIELDS]
    if way.token:
        fields.append(("authorization", f"Bearer {way.token}"))
    before = {name: cpu_s(pid) for name, pid in way.pids.items()}
    make = partial(Load, at_once, body, time.perf_counter() + seconds, fields)
    if way.address.startswith("/"):
        _, one = await loop.create_unix_connection(make, way.address)
    else:
        host, _, port = way.address.rpartition(":")
        _, one = await loop.create_connection(make, host, int(port), ssl=way.tls)
    await asyncio.wait([one.done], timeout=seconds + 10)
    done = len(one.latencies_s)
    if one.failed or not done:
        raise RuntimeError(f"{way.address}: {one.failed} requests failed, {done} were answered")
    p50_ms, p99_ms = np.percentile(one.latencies_s, [50, 99]) * 1e3
    us = {name: (cpu_s(pid) - before[name]) / done * 1e6 for name, pid in way.pids.items()}
    return Sample(us, done / seconds, p50_ms, p99_ms)


async def until_answered(way: Way, body: bytes) -> None:
    """Return once a request gets through."""
    async with asyncio.timeout(START_S):
        while True:
            try:
                await load(way, body, 1, 0.1)
            except (OSError, RuntimeError):
                await asyncio.sleep(0.2)
            else:
                return


async def run(args: argparse.Namespace) -> None:
    """Start everything, measure in turn, print."""
    with tempfile.TemporaryDirectory(prefix="servery-") as name:
        folder = Path(name)
        graph = folder / "models" / MODEL / "1" / "model.onnx"
        graph.parent.mkdir(parents=True)
        saves = {"dense": save_dense, "conv": save_conv}
        saves.get(args.model, partial(save_mean, args.model))(graph)
        row = np.ones(SHAPES[args.model], np.float32)
        body = pb.ModelInferRequest(
            model_name=MODEL,
            inputs=[{"name": "x", "datatype": "FP32", "shape": row.shape}],
            raw_input_contents=[row.tobytes()],
        ).SerializeToString()
        async with AsyncExitStack() as exits:
            ways = await started(folder, exits, with_tls=args.tls)
            for way in ways.values():
                await until_answered(way, body)
                await load(way, body, args.concurrency[-1], args.seconds)  # Warm.
            samples: dict[tuple[int, str], list[Sample]] = defaultdict(list)
            for _ in range(args.rounds):
                for at_once in args.concurrency:
                    for title, way in ways.items():
                        sample = await load(way, body, at_once, args.seconds)
                        samples[at_once, title].append(sample)
    shape = f"{args.model}, {args.rounds} rounds of {args.seconds:g} s, one connection"
    print(shape, "TLS to Envoy" if args.tls else "plain", sep=", ")
    print(
        f"{'':20} at once {'Envoy us':>9} {'inference':>9} {'req/s':>7} {'p50 ms':>7} {'p99 ms':>7}"
    )
    for (at_once, title), of_rounds in samples.items():
        report(f"{title:20} {at_once:7}", of_rounds)


async def started(folder: Path, exits: AsyncExitStack, *, with_tls: bool) -> dict[str, Way]:
    """Start the processes; return the ways."""
    socket, port = folder / "inference.sock", free_port()
    repository = ("--model-repository", str(folder / "models"))
    listen = ("--listen", f"unix:{socket}", "--log-level", "error")
    command = (sys.executable, "-m", "servery_inference", *repository, *listen)
    pids = {"inference": await exits.enter_async_context(process(*command))}
    config, tls = router_only(folder, port), None
    if with_tls:
        certificate(folder)
        tls = ssl.create_default_context(cafile=folder / "cert.pem")
        tls.set_alpn_protocols(["h2"])
        (listener,) = config["static_resources"]["listeners"]
        listener["filter_chains"][0]["transport_socket"] = tls_socket(folder)
    router = await exits.enter_async_context(envoy(config, folder / "router.json"))
    ways = {
        "straight": Way(str(socket), pids),
        "Envoy, router only": Way(f"127.0.0.1:{port}", {"Envoy": router, **pids}, tls=tls),
    }
    if not with_tls:
        chain = await exits.enter_async_context(gateway(folder, NUM_TENANTS))
        both = {"Envoy": chain.pids["Envoy"], **pids}
        ways["Envoy, full chain"] = Way(chain.address, both, chain.token)
    return ways


def tls_socket(folder: Path) -> Resource:
    """Return what makes a listener of Envoy speak TLS with the certificate in `folder`."""
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    pair = {
        "certificate_chain": {"filename": str(folder / "cert.pem")},
        "private_key": {"filename": str(folder / "key.pem")},
    }
    common = {"tls_certificates": [pair], "alpn_protocols": ["h2"]}
    typed = {"@type": kind, "common_tls_context": common}
    return {"name": "envoy.transport_sockets.tls", "typed_config": typed}


def report(title: str, samples: Sequence[Sample]) -> None:
    """Print one line of medians."""

    def us(name: str) -> str:
        values = [sample.us[name] for sample in samples if name in sample.us]
        return f"{statistics.median(values):9.0f}" if values else f"{'':9}"

    per_s = statistics.median(sample.per_s for sample in samples)
    p50_ms = statistics.median(sample.p50_ms for sample in samples)
    p99_ms = statistics.median(sample.p99_ms for sample in samples)
    print(f"{title} {us('Envoy')} {us('inference')} {per_s:7.0f} {p50_ms:7.2f} {p99_ms:7.2f}")


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each load")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--model", choices=SHAPES, default="dense")
    parser.add_argument("--tls", action="store_true")
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
