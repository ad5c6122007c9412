"""Run the inference process: `servery-inference --help`."""

import logging
import sys
from collections.abc import Sequence

import uvloop

from servery_inference.heap import keep_freed_blocks
from servery_inference.serving import serving_inference
from servery_inference.settings import InferenceSettings
from servery_rpc.process import run_process, stop_requested

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM; return the exit status."""
    keep_freed_blocks()
    return run_process(
        InferenceSettings, "SERVERY_INFERENCE", run, argv, loop_factory=uvloop.new_event_loop
    )


async def run(settings: InferenceSettings) -> None:
    """Serve until asked to stop."""
    async with serving_inference(settings) as inference:
        log.info("inference listening on %s", inference.address)
        await stop_requested()


if __name__ == "__main__":
    sys.exit(main())
