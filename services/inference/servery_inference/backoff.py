"""How long to wait between attempts."""

import random
from collections.abc import Iterator


def waits() -> Iterator[float]:
    """Seconds to wait before each next attempt: longer every time, and not all processes alike."""
    wait = 0.1
    while True:
        yield wait * random.uniform(0.7, 1.0)  # noqa: S311  spreads load, keeps no secret
        wait = min(wait * 2, 5.0)
