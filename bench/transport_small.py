"""What a small unary call costs the server: servery_h2 against grpc.aio, in one interleaved run.

The handler answers 100 bytes to a request of 3,136 (a row of 784 float32) and does nothing else.
CPU is what the server process used, user and system, all threads, divided by its requests; the
load comes from another process (transport_load.py) and does not count, though on a machine with
few cores it limits the throughput. The servers take turns, round by round, so that a noisy machine
is unfair to all of them. `python bench/transport_small.py [--tls] [--rounds R]`.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import json
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from servery_h2 import Limits, Server, TlsFiles

SERVERS = {
    "raw": "servery_h2, handler inline",
    "task": "servery_h2, grpc.aio handler",
    "grpcio": "grpc.aio on uvloop",
}
CONCURRENCY = {1: (1, 1), 8: (8, 1), 32: (8, 4)}
SERVICE, METHOD = "bench.Echo", "Unary"
MAX_MESSAGE_BYTES = 64 << 20
ANSWER = bytes(100)


async def answer(_: bytes, __: Any) -> bytes:
    """Answer as a grpc.aio handler."""
    return ANSWER


def handlers() -> grpc.GenericRpcHandler:
    """Return the echo service."""
    method = grpc.unary_unary_rpc_method_handler(answer)
    return grpc.method_handlers_generic_handler(SERVICE, {METHOD: method})


async def serve(kind: str, tls: Path | None) -> None:
    """Serve until killed; print the port."""
    server: grpc.aio.Server
    if kind == "grpcio":
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)])
        server.add_generic_rpc_handlers([handlers()])
        if tls is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            pair = (tls / "key.pem").read_bytes(), (tls / "cert.pem").read_bytes()
            port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    else:
        ours = Server(limits=Limits(max_receive_message_bytes=MAX_MESSAGE_BYTES))
        if kind == "raw":
            ours.add_raw_unary_handler(f"/{SERVICE}/{METHOD}", lambda _, __: ANSWER)
        else:
            ours.add_generic_rpc_handlers([handlers()])
        if tls is None:
            port = ours.add_insecure_port("127.0.0.1:0")
        else:
            port = ours.add_tls_port("127.0.0.1:0", TlsFiles(tls / "cert.pem", tls / "key.pem"))
        server = ours
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


@contextmanager
def running(kind: str, tls: Path | None) -> Iterator[tuple[int, int]]:
    """Run a server in a process; give its process id and port."""
    command = [sys.executable, __file__, "--serve", kind, *(["--tls-dir", str(tls)] if tls else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    assert process.stdout is not None  # noqa: S101
    try:
        yield process.pid, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def cpu_us(pid: int) -> float:
    """Return the time all threads of a process were on a CPU so far."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e3


def measure(
    pid: int, port: int, concurrency: int, args: argparse.Namespace, tls: Path | None
) -> Any:
    """Load a server once; return what the load saw and the CPU per request."""
    connections, streams = CONCURRENCY[concurrency]
    command = [
        *(sys.executable, str(Path(__file__).with_name("transport_load.py"))),
        *(f"127.0.0.1:{port}", "--connections", str(connections), "--streams", str(streams)),
        *("--seconds", str(args.seconds), "--bytes", str(args.bytes)),
        *(["--ca", str(tls / "cert.pem")] if tls else []),
    ]
    before = cpu_us(pid)
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    result = json.loads(done.stdout)
    if not result["requests"]:
        raise RuntimeError(f"the load got no answer: {done.stderr[-500:]}")
    result["cpu_us"] = (cpu_us(pid) - before) / max(result["requests"], 1)
    return result


def certificate(folder: Path) -> None:
    """Write a self-signed certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    now = datetime.datetime.now(datetime.UTC)
    host = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([host]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(pem, form, plain))


def compare(args: argparse.Namespace) -> None:
    """Run the rounds and print the table."""
    found: dict[tuple[str, int], list[Any]] = defaultdict(list)
    with ExitStack() as stack:
        tls = None
        if args.tls:
            tls = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            certificate(tls)
        servers = {kind: stack.enter_context(running(kind, tls)) for kind in SERVERS}
        for _ in range(args.rounds):
            for concurrency in CONCURRENCY:
                for kind, (pid, port) in servers.items():
                    result = measure(pid, port, concurrency, args, tls)
                    found[kind, concurrency].append(result)
    print(f"request {args.bytes} bytes, {'TLS' if args.tls else 'plain'}, {args.rounds} rounds")
    print(f"{'server':30} {'conc':>4} {'CPU us':>8} {'of grpc.aio':>11} {'req/s':>8} p50/p99 us")
    for concurrency in CONCURRENCY:
        base = _median(found["grpcio", concurrency], "cpu_us")
        for kind, title in SERVERS.items():
            rounds = found[kind, concurrency]
            cpu = _median(rounds, "cpu_us")
            failed = sum(one["failed"] for one in rounds)
            print(
                f"{title:30} {concurrency:4} {cpu:8.1f} {cpu / base:11.2f}"
                f" {_median(rounds, 'per_s'):8.0f} {_median(rounds, 'p50_us'):.0f}"
                f"/{_median(rounds, 'p99_us'):.0f}{f' FAILED {failed}' if failed else ''}"
            )


def _median(rounds: list[Any], key: str) -> float:
    return statistics.median(one[key] for one in rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each load")
    parser.add_argument("--bytes", type=int, default=3_136, help="size of a request message")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--tls-dir", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        uvloop.run(serve(arguments.serve, arguments.tls_dir))
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Ends the servers too.
        compare(arguments)
