"""`servery-gateway`: the control plane of the gateway. Envoy itself is `servery-envoy`."""

import sys
from collections.abc import Sequence

from servery_gateway.control_plane import control_plane
from servery_gateway.settings import GatewaySettings
from servery_rpc.process import run_process, stop_requested


async def run(settings: GatewaySettings) -> None:
    """Serve until the process is asked to stop."""
    async with control_plane(settings):
        await stop_requested()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the process; return its exit status."""
    return run_process(GatewaySettings, "SERVERY_GATEWAY", run, argv)


if __name__ == "__main__":
    sys.exit(main())
