"""Hours of calls, attacks and clients that die, in one table: memory and descriptors stay flat.

A server process answers a well-behaved load while another process attacks it: rapid reset, floods
of PING, SETTINGS and CONTINUATION, header bombs, bodies that stop, windows of zero, connections
dropped anywhere. Every interval prints what the load saw without and with the attack beside it, and
what the server holds. Exit status 1 if memory or descriptors grew, or a call of the load failed.
`--pause-s` leaves the machine to others: so long from an answer to the next call of its stream, and
from attack to attack.

    python bench/transport_soak.py --minutes 60 [--pause-s 0.05]
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from transport_small import METHOD, SERVICE, running

from servery_h2 import frames
from servery_h2.header_block import encode_fields

GREETING = frames.PREFACE + frames.settings({})
REQUEST = encode_fields(
    (name.encode(), value.encode())
    for name, value in {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/{SERVICE}/{METHOD}",
        "te": "trailers",
        "content-type": "application/grpc",
    }.items()
)
BODY = b"\0" + (3_136).to_bytes(4) + bytes(3_136)
IDS = range(1, 20_000, 2)


def head(stream_id: int) -> bytes:
    """Return HEADERS that begin a call."""
    return frames.headers(stream_id, REQUEST, 1 << 14, end_stream=False)


def call(stream_id: int) -> bytes:
    """Return a whole call."""
    return head(stream_id) + frames.frame(frames.DATA, frames.END_STREAM, stream_id, BODY)


def cancel(stream_id: int) -> bytes:
    """Return RST_STREAM."""
    return frames.rst_stream(stream_id, frames.ErrorCode.CANCEL)


def attacks() -> dict[str, bytes]:
    """Return what each attack sends after the greeting; the server hangs up before its end."""
    part = frames.frame(frames.CONTINUATION, 0, 1, b"\0\1a\1b")
    bomb = b"\x40" + encode_fields([(b"x", b"v" * 3_000)])[1:] + b"\xbe" * 9_000
    return {
        "rapid reset": b"".join(head(i) + cancel(i) for i in IDS),
        "reset of answered calls": b"".join(call(i) + cancel(i) for i in IDS[:3_000]),
        "too many streams": b"".join(head(i) for i in IDS),
        "ping": frames.ping(b"12345678") * 20_000,
        "settings": frames.settings({}) * 20_000,
        "window": frames.window_update(0, 1) * 20_000,
        "continuation": frames.frame(frames.HEADERS, 0, 1, REQUEST) + part * 5_000,
        "hpack bomb": frames.headers(1, REQUEST + bomb, 1 << 14, end_stream=True),
        "single bytes": head(1)
        + frames.frame(frames.DATA, 0, 1, BODY[:5])
        + frames.frame(frames.DATA, 0, 1, b"x") * 20_000,
        "zero window": frames.settings({frames.INITIAL_WINDOW_SIZE: 0})
        + b"".join(call(i) for i in IDS[:100]),
        "body that stops": b"".join(head(i) for i in IDS[:100])
        + frames.frame(frames.DATA, 0, 1, BODY[:1_000]),
    }


def attack(port: int, pause_s: float) -> None:
    """Attack for ever, one attack after the other."""
    prepared = list(attacks().values())
    for number in range(sys.maxsize):
        payload = GREETING + prepared[number % len(prepared)]
        if number // len(prepared) % 2:  # Every second round dies anywhere.
            payload = payload[: random.randrange(len(payload))]  # noqa: S311
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as sock:
            sock.settimeout(0.5)
            sock.sendall(payload)
            while sock.recv(1 << 16):
                pass
        time.sleep(pause_s)


def load(port: int, seconds: float, pause_s: float) -> Any:
    """Load the server; return what the load saw."""
    script = str(Path(__file__).with_name("transport_load.py"))
    shape = ["--connections", "4", "--streams", "2", "--seconds", str(seconds)]
    command = [sys.executable, script, f"127.0.0.1:{port}", *shape, "--pause-s", str(pause_s)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return json.loads(done.stdout)


def held(pid: int) -> tuple[float, int]:
    """Return the memory (MiB) and the number of descriptors a process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(resident.split()[1]) / 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def soak(minutes: float, interval_s: float, kind: str, pause_s: float) -> int:
    """Run, print the table, return the exit status."""
    end = time.monotonic() + minutes * 60
    seen: list[tuple[float, int]] = []
    failed = 0
    with running(kind, None) as (pid, port):
        print(
            f"{'minute':>6} {'req/s':>7} {'p99 us':>7} {'attacked':>8} {'p99 us':>7} {'MiB':>6} fds"
        )
        while time.monotonic() < end:
            alone = load(port, interval_s / 2, pause_s)
            attacking = ["--attack", str(port), "--pause-s", str(pause_s)]
            attacker = subprocess.Popen([sys.executable, __file__, *attacking])  # noqa: S603
            try:
                attacked = load(port, interval_s / 2, pause_s)
            finally:
                if attacker.poll() is not None:
                    raise RuntimeError("the attacker ended by itself")
                attacker.kill()
                attacker.wait()
            failed += alone["failed"] + attacked["failed"]
            time.sleep(0.5)  # What the attacker left is closed.
            seen.append(held(pid))
            minute = minutes - (end - time.monotonic()) / 60
            memory_mib, descriptors = seen[-1]
            print(
                f"{minute:6.1f} {alone['per_s']:7} {alone['p99_us']:7.0f}"
                f" {attacked['per_s']:8} {attacked['p99_us']:7.0f} {memory_mib:6.1f} {descriptors}",
                flush=True,
            )
    settled = seen[len(seen) // 5]  # The first fifth is for caches to fill.
    grew = seen[-1][0] > settled[0] * 1.1 + 4 or seen[-1][1] > settled[1]
    print("grew" if grew else "flat", f"{failed} calls of the load failed", sep=", ")
    return int(grew or failed > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--interval-s", type=float, default=20.0)
    parser.add_argument("--kind", choices=["raw", "task"], default="raw")
    parser.add_argument("--pause-s", type=float, default=0.0, help="of callers and attackers")
    parser.add_argument("--attack", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # Ends the server too.
    if arguments.attack:
        attack(arguments.attack, arguments.pause_s)
    sys.exit(soak(arguments.minutes, arguments.interval_s, arguments.kind, arguments.pause_s))
