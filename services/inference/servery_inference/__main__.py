"""Run the inference process: `servery-inference --help`."""

import logging
import sys
from collections.abc import Sequence
from functools import partial

import uvloop
from prometheus_client import REGISTRY, CollectorRegistry

from servery_inference.heap import keep_freed_blocks
from servery_inference.serving import serving_inference
from servery_inference.settings import InferenceSettings
from servery_inference.workers.merged_metrics import MergedMetrics
from servery_rpc.process import run_process, stop_requested

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM; return the exit status."""
    keep_freed_blocks()
    metrics, registry = MergedMetrics(REGISTRY), CollectorRegistry()
    registry.register(metrics)
    return run_process(
        InferenceSettings,
        "SERVERY_INFERENCE",
        partial(run, metrics),
        argv,
        loop_factory=uvloop.new_event_loop,
        registry=registry,
    )


async def run(metrics: MergedMetrics, settings: InferenceSettings) -> None:
    """Serve until asked to stop."""
    async with serving_inference(settings, metrics) as inference:
        log.info("inference listening on %s", inference.address)
        await stop_requested()


if __name__ == "__main__":
    sys.exit(main())
