"""A server process of the chassis with nothing of its own: `python small_process.py --listen …`."""

import logging
import sys

from servery_rpc.process import run_process, stop_requested
from servery_rpc.server import serving
from servery_rpc.settings import ServerSettings


async def run(settings: ServerSettings) -> None:
    async with serving(settings) as server:
        logging.getLogger("small").info("listening on %s", server.address)
        await stop_requested()
    logging.getLogger("small").info("drained")


if __name__ == "__main__":
    sys.exit(run_process(ServerSettings, "SERVERY_SMALL", run))
