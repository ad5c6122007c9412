"""Quotas: how much tenants, keys and identities may call."""

from dataclasses import dataclass, fields
from typing import Final

from servery_rpc.errors import FieldInvalidError
from servery_rpc.names import ApiKeyName, IdentityName, TenantName

Owner = TenantName | ApiKeyName | IdentityName

MAX_PER_SECOND: Final = 1_000_000
_MAX_PER_DAY: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """How much may be called; 0 means no limit."""

    requests_per_second: int = 0
    requests_per_day: int = 0

    requests_in_flight: int = 0
    """Of inference, at once and by each of its servers."""


LIMITS: Final = tuple(field.name for field in fields(Quota))
"""The names of all limits."""


def parse_owner(text: str, field: str) -> Owner:
    """Parse the resource name of a tenant, a key or an identity.

    Raises:
        FieldInvalidError: It is none of them.
    """
    if "/apiKeys/" in text:
        return ApiKeyName.parse(text, field)
    if "/identities/" in text:
        return IdentityName.parse(text, field)
    return TenantName.parse(text, field)


def parse_quota(**limits: int) -> Quota:
    """Parse limits, given by their names.

    Raises:
        FieldInvalidError: One is out of its range.
    """
    for name, value in limits.items():
        most = _MAX_PER_DAY if name == "requests_per_day" else MAX_PER_SECOND
        if not 0 <= value <= most:
            raise FieldInvalidError(f"quota.{name}", value, f"be 0 to {most}")
    return Quota(**limits)
