"""Large blocks are kept from one message to the next."""

import subprocess
import sys

CHURN = """
import resource, sys
from servery_inference.heap import keep_freed_blocks
assert keep_freed_blocks()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    blocks = [bytes(600_000) for _ in range(8)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_blocks_that_were_freed_are_not_fetched_again() -> None:
    run = [sys.executable, "-c", CHURN]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 10 * 8 * 600_000 // 4096  # Else 100 times.
