"""What ends a run on the event loop, and what does not."""

import threading
import time

import onnxruntime as ort

from servery_inference.watchdog import Watchdog

LIMIT_S = 0.01


def test_a_run_that_keeps_the_processor_is_ended() -> None:
    def run(options: ort.RunOptions) -> bool:
        give_up = time.monotonic() + 30
        while not options.terminate and time.monotonic() < give_up:
            pass
        return bool(options.terminate)

    with Watchdog.watching(LIMIT_S) as watchdog:
        assert watchdog.watch(run)


def test_a_run_that_waits_for_the_processor_is_not_ended() -> None:
    def run(options: ort.RunOptions) -> bool:
        threading.Event().wait(20 * LIMIT_S)  # As if the scheduler had taken the thread off.
        return bool(options.terminate)

    with Watchdog.watching(LIMIT_S) as watchdog:
        assert not watchdog.watch(run)
