"""How long a revoked key still works, under load, with tokens that are alive.

    python bench/gateway_revocation.py [--rounds 20] [--callers 32]

Callers with tokens of different keys call through a real Envoy as fast as they can, each again as
soon as it is answered. Each round revokes one key and prints how long after the request to revoke
a call with its token was last begun that succeeded, and how long the request took. Calls with
other keys must not fail.
"""

import argparse
import asyncio
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from servery.gateway.v1 import gateway_pb2 as pb
from servery.gateway.v1 import gateway_pb2_grpc as pb_grpc
from servery_gateway.envoy import is_ready

READY = "/inference.GRPCInferenceService/ServerReady"
EMPTY = b""


@dataclass
class Caller:
    """Calls with the token of one key until that is refused."""

    key: str
    token: str
    calls: int = 0
    last_success: float = 0.0
    """When its last call that succeeded was begun, by `time.perf_counter`."""
    refused: str = ""
    """The status that ended it."""

    async def run(self, channel: grpc.aio.Channel) -> None:
        """Call again and again."""
        ready: Any = channel.unary_unary(READY)
        metadata = [("authorization", f"Bearer {self.token}")]
        while True:
            begun = time.perf_counter()
            try:
                await ready(EMPTY, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                self.refused = error.code().name
                return
            self.last_success = begun
            self.calls += 1


async def serve(address: str) -> None:
    """Be the inference server: healthy, and ready at once."""
    server = grpc.aio.server()
    answers = {"/grpc.health.v1.Health/Check": b"\x08\x01", READY: EMPTY}

    class Answer(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            answer = answers.get(handler_call_details.method)

            async def respond(_request: bytes, _context: Any) -> bytes | None:
                return answer

            return None if answer is None else grpc.unary_unary_rpc_method_handler(respond)

    server.add_generic_rpc_handlers([Answer()])
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


@contextmanager
def process(log: Path, *argv: str) -> Iterator[None]:
    """Run a Python program; stop it in the end."""
    with log.open("ab") as file:
        running = subprocess.Popen([sys.executable, *argv], stdout=file, stderr=file)  # noqa: S603 ours
    try:
        yield
    finally:
        running.terminate()
        running.wait(15)


async def measure(directory: Path, rounds: int, callers: int) -> None:
    """Start everything, revoke keys, print."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    sockets = {name: f"unix:{directory}/{name}.sock" for name in ("gateway", "inference", "none")}
    flags = {
        "--listen": sockets["gateway"],
        "--data-dir": f"{directory}/data",
        "--public-listen": address,
        "--inference": sockets["inference"],
        "--registry": sockets["none"],
        "--trainer": sockets["none"],
    }
    log, envoy = directory / "log", directory / "envoy"
    ads = ("--ads", sockets["gateway"], "--run-dir", str(envoy))
    async with AsyncExitStack() as exits:
        for argv in (
            (__file__, "--serve", sockets["inference"]),
            ("-m", "servery_gateway", *(part for flag in flags.items() for part in flag)),
            ("-m", "servery_gateway.envoy", *ads),
        ):
            exits.enter_context(process(log, *argv))
        platform = await exits.enter_async_context(grpc.aio.insecure_channel(sockets["gateway"]))
        public = await exits.enter_async_context(grpc.aio.insecure_channel(address))
        async with asyncio.timeout(60):
            while not await asyncio.to_thread(is_ready, envoy):  # noqa: ASYNC110 it has no event
                await asyncio.sleep(0.1)
        running = [await caller(platform, public) for _ in range(max(callers, rounds + 1))]
        tasks = [asyncio.create_task(each.run(public)) for each in running[:callers]]
        start = time.perf_counter()
        keys = pb_grpc.ApiKeyServiceStub(platform)
        after, took = [], []
        for number in range(rounds):
            victim = running[number]
            if number >= callers:
                tasks.append(asyncio.create_task(victim.run(public)))
            await asyncio.sleep(0.5)
            asked = time.perf_counter()
            await keys.RevokeApiKey(pb.RevokeApiKeyRequest(name=victim.key))
            took.append(time.perf_counter() - asked)
            await tasks[number]
            after.append(max(victim.last_success - asked, 0.0))
            print(
                f"round {number + 1}: last success {after[-1] * 1e3:.0f} ms after the request,"
                f" which took {took[-1] * 1e3:.0f} ms; then {victim.refused}"
            )
        elapsed = time.perf_counter() - start
        others = [each for each in running[rounds:callers] if each.refused]
        for task in tasks:
            task.cancel()
        report(after, took, others, sum(each.calls for each in running) / elapsed)


def report(
    after: Sequence[float], took: Sequence[float], failed: Sequence[Caller], per_s: float
) -> None:
    """Print the sums of all rounds."""
    print(f"{per_s:.0f} calls a second beside; other keys that were refused: {len(failed)}")
    for name, times in (("last success after", after), ("request took", took)):
        middle, longest = statistics.median(times) * 1e3, max(times) * 1e3
        print(f"{name}: median {middle:.0f} ms, longest {longest:.0f} ms")


async def caller(platform: grpc.aio.Channel, public: grpc.aio.Channel) -> Caller:
    """Make a key and exchange it."""
    key = pb.ApiKey(permissions=[pb.Permission(verb=pb.VERB_INFER, models=["*"])])
    created = await pb_grpc.ApiKeyServiceStub(platform).CreateApiKey(
        pb.CreateApiKeyRequest(parent="tenants/default", api_key=key)
    )
    while True:
        try:
            answer = await pb_grpc.AuthServiceStub(public).ExchangeApiKey(
                pb.ExchangeApiKeyRequest(api_key=created.secret)
            )
        except grpc.aio.AioRpcError:  # Envoy has yet to find the control plane healthy.
            await asyncio.sleep(0.2)
        else:
            return Caller(created.api_key.name, answer.access_token)


def main() -> None:
    """Parse, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve(args.serve))
        return
    with tempfile.TemporaryDirectory(prefix="servery-") as name:
        asyncio.run(measure(Path(name), args.rounds, args.callers))


if __name__ == "__main__":
    main()
