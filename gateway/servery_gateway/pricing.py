"""What calls cost. Pure: no clock, no database.

Money is in billionths of a currency that is named nowhere: there is one for the whole platform.
"""

from dataclasses import dataclass, fields
from typing import Final

from servery_gateway.usage import Sums
from servery_rpc.errors import FieldInvalidError

_MAX_NANOS: Final = 10**15


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What successful calls cost, in billionths; others cost nothing."""

    thousand_requests_nanos: int = 0
    thousand_rows_nanos: int = 0
    compute_second_nanos: int = 0

    gigabyte_nanos: int = 0
    """For 10^9 bytes, sent and received together."""

    def cost_nanos(self, sums: Sums) -> int:
        """Return what calls cost together, to the nearest billionth."""
        parts = (
            (sums.requests * self.thousand_requests_nanos, 10**3),
            (sums.rows * self.thousand_rows_nanos, 10**3),
            (sums.compute_ns * self.compute_second_nanos, 10**9),
            ((sums.request_bytes + sums.response_bytes) * self.gigabyte_nanos, 10**9),
        )
        return sum((amount + unit // 2) // unit for amount, unit in parts)


PRICES: Final = tuple(field.name for field in fields(Prices))
"""The names of all prices."""


def parse_prices(**nanos: int) -> Prices:
    """Parse prices, given by their names.

    Raises:
        FieldInvalidError: One is out of its range.
    """
    for name, value in nanos.items():
        if not 0 <= value <= _MAX_NANOS:
            raise FieldInvalidError(f"prices.{name}", value, f"be 0 to {_MAX_NANOS}")
    return Prices(**nanos)
