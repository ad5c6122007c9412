"""Whether calls fail while everything around them changes.

    python bench/gateway_soak.py [--routes 500] [--certificates 50] [--kills 20] [--restarts 20]

Clients that never retry call through Envoy over TLS, some on one connection, one on a new one each
time. Meanwhile routes are set, certificates replaced, the control plane is killed and started
again, and two servers of a pool are restarted in turn. Prints for each of these how many calls
there were and how many failed; ends with status 1 if one did.
"""

import argparse
import asyncio
import datetime
import ipaddress
import signal
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from servery.gateway.v1 import gateway_pb2 as pb
from servery.gateway.v1 import gateway_pb2_grpc as pb_grpc
from servery.gateway.v1 import route_pb2, route_pb2_grpc
from servery.inference.v1 import grpc_service_pb2 as oip
from servery_gateway.envoy import admin, is_ready
from servery_rpc.process import stop_requested
from servery_rpc.server import Service, serving
from servery_rpc.settings import ServerSettings

INFER = "/inference.GRPCInferenceService/ModelInfer"
DIGITS = "tenants/default/models/digits"
REQUEST = oip.ModelInferRequest(
    model_name="digits", raw_input_contents=[bytes(784 * 4)]
).SerializeToString()
ANSWER = oip.ModelInferResponse(model_name="digits", model_version="1").SerializeToString()
NO_RETRIES = [("grpc.enable_retries", 0)]
CLIENTS = 3
SERVERS = ("inference", "gpu-1", "gpu-2")


class Answers(grpc.GenericRpcHandler):
    """Answers every call with the same bytes, after a time as a model takes."""

    def service(self, handler_call_details: Any) -> Any:
        """See grpc."""
        if handler_call_details.method != INFER:
            return None

        async def answer(_request: bytes, _context: Any) -> bytes:
            await asyncio.sleep(0.002)
            return ANSWER

        return grpc.unary_unary_rpc_method_handler(answer)


async def serve(address: str) -> None:
    """Be a server behind the gateway until asked to stop; then drain as our servers do."""
    service = Service("soak", lambda server: server.add_generic_rpc_handlers([Answers()]))
    async with serving(ServerSettings(listen=address, drain_s=2), service):
        await stop_requested()


class Authority:
    """Signs certificates for 127.0.0.1."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "soak")])
        ca = x509.BasicConstraints(ca=True, path_length=None)
        own = self._builder(self._name, self._key).add_extension(ca, critical=True)
        self.certificate = self._signed(own)

    def write(self, chain: Path, key: Path) -> bytes:
        """Write a new certificate with its key; return it as DER."""
        private = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "servery")])
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        pem = self._signed(self._builder(subject, private).add_extension(address, critical=False))
        chain.write_bytes(pem)
        key.write_bytes(
            private.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return ssl.PEM_cert_to_DER_cert(pem.decode())

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    def _signed(self, builder: x509.CertificateBuilder) -> bytes:
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@dataclass
class Traffic:
    """Calls that go on for the length of a block, and what became of them."""

    address: str
    trust: grpc.ChannelCredentials
    token: str = ""
    num_calls: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Call without a pause inside the block."""
        stop = asyncio.Event()
        tasks = [asyncio.create_task(self._stay(stop)) for _ in range(CLIENTS)]
        tasks.append(asyncio.create_task(self._come_and_go(stop)))
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def _stay(self, stop: asyncio.Event) -> None:
        async with self._channel() as channel:
            while not stop.is_set():
                await self._call(channel)

    async def _come_and_go(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            async with self._channel() as channel:
                await self._call(channel)

    def _channel(self) -> grpc.aio.Channel:
        options = [*NO_RETRIES, ("grpc.use_local_subchannel_pool", 1)]
        return grpc.aio.secure_channel(self.address, self.trust, options)

    async def _call(self, channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary(INFER)
        metadata = [("authorization", f"Bearer {self.token}")]
        self.num_calls += 1
        try:
            if await call(REQUEST, metadata=metadata, timeout=10) != ANSWER:
                self.failures["another answer"] += 1
        except grpc.aio.AioRpcError as error:
            self.failures[f"{error.code().name}: {error.details()}"] += 1


@dataclass
class Gateway:
    """The processes, and how to change what they do."""

    directory: Path
    port: int
    authority: Authority
    exits: AsyncExitStack
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    @property
    def control(self) -> str:
        """Address of the control plane."""
        return f"unix:{self.directory}/gateway.sock"

    async def start(self, name: str) -> None:
        """Start a process, which is ended with the gateway."""
        module = [sys.executable, "-m"]
        sockets = {server: f"unix:{self.directory}/{server}.sock" for server in SERVERS}
        upstream = sockets["inference"]
        argv = {
            "gateway": [
                *(*module, "servery_gateway", "--listen", self.control),
                *("--data-dir", str(self.directory / "data")),
                *("--public-listen", f"127.0.0.1:{self.port}"),
                *("--registry", upstream, "--trainer", upstream, "--inference", upstream),
                *("--inference-pools", f"gpu={sockets['gpu-1']}", f"gpu={sockets['gpu-2']}"),
                *("--public-tls-certificate", str(self.directory / "tls.crt")),
                *("--public-tls-key", str(self.directory / "tls.key")),
            ],
            "envoy": [
                *(*module, "servery_gateway.envoy", "--ads", self.control),
                *("--run-dir", str(self.directory / "envoy")),
            ],
            **{
                server: [sys.executable, __file__, "--serve", address]
                for server, address in sockets.items()
            },
        }[name]
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(*argv, stderr=log)

    async def stop(self, name: str, number: signal.Signals) -> None:
        """Send a process a signal and wait for its end."""
        process = self.processes.pop(name)
        process.send_signal(number)
        await process.wait()

    async def stat(self, name: str) -> int:
        """Return a statistic of Envoy."""
        path = f"/stats?filter=^{name}$"
        _, text = await asyncio.to_thread(admin, self.directory / "envoy", "GET", path)
        return int(text.split()[-1]) if text.strip() else -1

    async def shown(self) -> bytes:
        """Return the certificate that a new connection sees, as DER."""
        here = ("127.0.0.1", self.port)
        pem = await asyncio.to_thread(ssl.get_server_certificate, here, timeout=5)
        return ssl.PEM_cert_to_DER_cert(pem)

    async def new_token(self) -> str:
        """Create a key that may call `digits`, and exchange it."""
        async with grpc.aio.insecure_channel(self.control) as channel:
            permission = pb.Permission(verb=pb.VERB_INFER, models=["digits"])
            key = await pb_grpc.ApiKeyServiceStub(channel).CreateApiKey(
                pb.CreateApiKeyRequest(
                    parent="tenants/default", api_key=pb.ApiKey(permissions=[permission])
                )
            )
            exchanged = await pb_grpc.AuthServiceStub(channel).ExchangeApiKey(
                pb.ExchangeApiKeyRequest(api_key=key.secret)
            )
            return exchanged.access_token

    async def set_route(self, **weights: int) -> float:
        """Set the route of `digits`; return how long it took, in seconds."""
        route = route_pb2.Route(name=DIGITS)
        route.pools.extend(route_pb2.WeightedPool(pool=p, weight=w) for p, w in weights.items())
        async with grpc.aio.insecure_channel(self.control) as channel:
            await channel.channel_ready()
            start = time.perf_counter()
            stub = route_pb2_grpc.RouteServiceStub(channel)
            await stub.SetRoute(route_pb2.SetRouteRequest(route=route))
            return time.perf_counter() - start


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Gateway]:
    """Run everything inside the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with AsyncExitStack() as exits:
        gateway = Gateway(directory, port, Authority(), exits)
        gateway.authority.write(directory / "tls.crt", directory / "tls.key")
        try:
            for name in (*SERVERS, "gateway", "envoy"):
                await gateway.start(name)
            await until(lambda: asyncio.to_thread(is_ready, directory / "envoy"), 90)
            await until(lambda: is_healthy(gateway, 2))
            yield gateway
        finally:
            for name in tuple(gateway.processes):
                await gateway.stop(name, signal.SIGTERM)


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 30.0) -> None:
    """Poll until `condition` holds."""
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 other processes set no event
            await asyncio.sleep(0.02)


async def is_healthy(gateway: Gateway, servers: int) -> bool:
    """Tell whether Envoy takes that many servers of the pool, and the default one, for healthy."""
    healthy = "cluster.{}.membership_healthy"
    return (
        await gateway.stat(healthy.format("inference-pool-gpu")) == servers
        and await gateway.stat(healthy.format("inference")) == 1
    )


async def change_routes(gateway: Gateway, times: int) -> str:
    """Move the model between pools, and split it over them."""
    plans: list[dict[str, int]] = [{"gpu": 1}, {"default": 9, "gpu": 1}, {"default": 1}]
    took_s = [await gateway.set_route(**plans[n % 3]) for n in range(times)]
    worst = max(took_s) * 1000
    return f"route change to ACK: median {statistics.median(took_s) * 1000:.0f} ms, max {worst:.0f}"


async def replace_certificates(gateway: Gateway, times: int) -> str:
    """Show clients one certificate after the other."""
    start = time.perf_counter()
    for _ in range(times):
        chain, key = gateway.directory / "tls.crt", gateway.directory / "tls.key"
        new = gateway.authority.write(chain, key)

        async def is_shown(new: bytes = new) -> bool:
            return await gateway.shown() == new

        await until(is_shown)
    return f"{(time.perf_counter() - start) / max(times, 1):.1f} s until shown"


async def kill_control_plane(gateway: Gateway, times: int) -> str:
    """Kill the control plane and start it again; then change a route, which must reach Envoy."""
    start = time.perf_counter()
    for number in range(times):
        await gateway.stop("gateway", signal.SIGKILL)
        await gateway.start("gateway")
        await until(lambda: is_connected(gateway))
        await gateway.set_route(default=1, gpu=number + 1)
    return f"{(time.perf_counter() - start) / max(times, 1):.1f} s until it steers again"


async def is_connected(gateway: Gateway) -> bool:
    """Tell whether Envoy follows the control plane."""
    return await gateway.stat("control_plane.connected_state") == 1


async def restart_servers(gateway: Gateway, times: int) -> str:
    """Restart the servers of the pool in turn, each once the other one is back."""
    await gateway.set_route(gpu=1)
    start = time.perf_counter()
    for number in range(times):
        name = f"gpu-{number % 2 + 1}"
        await gateway.stop(name, signal.SIGTERM)
        await gateway.start(name)
        await until(partial(answers, f"unix:{gateway.directory}/{name}.sock"))
        await until(lambda: is_healthy(gateway, 2))
    return f"{(time.perf_counter() - start) / max(times, 1):.1f} s until it is back"


async def answers(address: str) -> bool:
    """Tell whether the server at an address says that it serves."""
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            return await check(b"", timeout=2) == b"\x08\x01"
        except grpc.aio.AioRpcError:
            return False


async def run(counts: dict[str, int]) -> int:
    """Run the phases one after the other; return the exit status."""
    phases = {
        "routes": change_routes,
        "certificates": replace_certificates,
        "kills": kill_control_plane,
        "restarts": restart_servers,
    }
    failed = 0
    with tempfile.TemporaryDirectory(prefix="servery-") as name:
        async with running(Path(name)) as gateway:
            trust = grpc.ssl_channel_credentials(gateway.authority.certificate)
            for phase, change in phases.items():
                traffic = Traffic(f"127.0.0.1:{gateway.port}", trust, await gateway.new_token())
                async with traffic.flowing():
                    remark = await change(gateway, counts[phase])
                here = sum(traffic.failures.values())
                print(
                    f"{counts[phase]:>4} {phase:<14}{traffic.num_calls:>7} calls {here:>4} failed"
                    f"   {remark}",
                    flush=True,
                )
                for text, times in traffic.failures.most_common(5):
                    print(f"     {times} x {text}")
                failed += here
    return 1 if failed else 0


def main() -> int:
    """Read the arguments and run; the one without help is for the processes this starts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    for name, number in (("routes", 500), ("certificates", 50), ("kills", 20), ("restarts", 20)):
        parser.add_argument(f"--{name}", type=int, default=number, help="how many")
    args = vars(parser.parse_args())
    if address := args.pop("serve"):
        asyncio.run(serve(address))
        return 0
    return asyncio.run(run(args))


if __name__ == "__main__":
    sys.exit(main())
