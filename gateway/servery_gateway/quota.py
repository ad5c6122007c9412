"""Quotas: how much tenants and keys may call."""

from dataclasses import dataclass
from typing import Final, Literal

from servery.errors.v1 import error_reason_pb2 as reasons
from servery_rpc.errors import FieldInvalidError, ServeryError
from servery_rpc.names import ApiKeyName, TenantName

Limit = Literal["requests_per_second", "requests_per_day", "key_exchanges"]
Owner = TenantName | ApiKeyName

MAX_PER_SECOND: Final = 1_000_000
_MAX_PER_DAY: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """How much may be called; 0 means no limit."""

    requests_per_second: int = 0
    requests_per_day: int = 0


class QuotaExceededError(ServeryError):
    """A quota is used up. Raised by nobody here: Envoy says it."""

    reason = reasons.ERROR_REASON_QUOTA_EXCEEDED

    def __init__(self, limit: Limit, retry_after_ms: int, what: str) -> None:
        super().__init__(what, limit=limit)
        self.retry_after_ms = retry_after_ms


def parse_owner(text: str, field: str) -> Owner:
    """Parse the resource name of a tenant or a key.

    Raises:
        FieldInvalidError: It is neither.
    """
    if "/apiKeys/" in text:
        return ApiKeyName.parse(text, field)
    return TenantName.parse(text, field)


def parse_quota(requests_per_second: int, requests_per_day: int) -> Quota:
    """Parse limits.

    Raises:
        FieldInvalidError: One is out of its range.
    """
    for name, value, most in (
        ("requests_per_second", requests_per_second, MAX_PER_SECOND),
        ("requests_per_day", requests_per_day, _MAX_PER_DAY),
    ):
        if not 0 <= value <= most:
            raise FieldInvalidError(f"quota.{name}", value, f"be 0 to {most}")
    return Quota(requests_per_second=requests_per_second, requests_per_day=requests_per_day)
