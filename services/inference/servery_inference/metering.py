"""What a call used, told to the gateway behind the answer, where it is put on the bill.

Costs a call that came through the gateway about two microseconds and others one look at their
metadata.
"""

from typing import Final

from servery_inference.access import Context
from servery_inference.request import Answer
from servery_rpc.identity import CLAIMS_HEADER

USAGE_HEADER: Final = "servery-usage"
"""Key behind an answer: `version=3;rows=8;compute_ns=51000`. The version is 0 if there were
several; the time is that of the runs, by the share of their rows."""


class Tally:
    """Adds up what the answers of one call took."""

    def __init__(self) -> None:
        self._version = 0
        self._rows = 0
        self._compute_ns = 0
        self._answers = 0

    def add(self, answer: Answer) -> None:
        """Count one answer."""
        same = not self._answers or answer.version == self._version
        self._version = answer.version if same else 0
        self._answers += 1
        self._rows += answer.rows
        self._compute_ns += int(answer.timing.compute_infer_ns * answer.timing.share)

    def __str__(self) -> str:
        return usage_text(self._version, self._rows, self._compute_ns)


def usage_text(version: int, rows: int, compute_ns: int) -> str:
    """Render the value of `USAGE_HEADER`."""
    return f"version={version};rows={rows};compute_ns={compute_ns}"


def is_metered(context: Context) -> bool:
    """Tell whether the call came through the gateway, which writes bills."""
    return any(key == CLAIMS_HEADER for key, _ in context.invocation_metadata() or ())
