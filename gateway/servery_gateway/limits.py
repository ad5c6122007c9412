"""The filters that refuse calls for their number and their key. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from servery_gateway.extensions import (
    CALLER_HEADER,
    HTTP_FILTERS,
    RBAC,
    TENANT_HEADER,
    typed,
)
from servery_gateway.snapshot import Resource

DENIED_NAME: Final = "refused-callers"
"""The filter that refuses keys; it comes by itself, so that no connection ends for it."""

RATES_NAME: Final = "call-rates"
"""The filter that counts calls; it comes by itself, too."""

RATE_LIMIT: Final = f"{HTTP_FILTERS}.local_ratelimit.v3.LocalRateLimit"
REVOKED_POLICY: Final = "revoked"
SPENT_POLICY: Final = "spent"
BUDGET_POLICY: Final = "budget"
EXCHANGE_PATH: Final = "/servery.gateway.v1.AuthService/ExchangeApiKey"

_MAX_BUCKETS: Final = 10_000
_NO_LIMIT: Final = 1_000_000_000
_IPV6_SITE_BITS: Final = 64
"""One caller holds that many addresses at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How often may be called, by each Envoy for itself."""

    exchanges_per_minute: int
    """Of keys for tokens, by one address."""

    tenant_per_second: int = 0
    """By a tenant that `owners` does not name; 0: as often as it wants."""

    owners: Mapping[str, int]
    """Calls a second by tenant, key and identity, which are resource names."""


def rate_limits(rates: Rates) -> Resource:
    """Return the filter `RATES_NAME`."""
    descriptors = [
        _descriptor(
            [
                {"key": "exchange", "value": "exchange"},
                {"key": "masked_remote_address"},  # Each address has a bucket of its own.
            ],
            rates.exchanges_per_minute,
            "60s",
        )
    ]
    if rates.tenant_per_second:
        descriptors.append(_descriptor([{"key": TENANT_HEADER}], rates.tenant_per_second, "1s"))
    for owner, per_second in sorted(rates.owners.items()):
        header, value = _told_of(owner)
        descriptors.append(_descriptor([{"key": header, "value": value}], per_second, "1s"))
    everyone = {"default_value": {"numerator": 100}}
    return typed(
        RATES_NAME,
        {
            "@type": RATE_LIMIT,
            "stat_prefix": "public",
            "token_bucket": _bucket(_NO_LIMIT, "1s"),
            "always_consume_default_token_bucket": False,
            "filter_enabled": everyone,
            "filter_enforced": everyone,
            "rate_limited_as_resource_exhausted": True,
            "max_dynamic_descriptors": _MAX_BUCKETS,
            "rate_limits": [
                {"actions": [_value_of(TENANT_HEADER)]},
                {"actions": [_value_of(CALLER_HEADER)]},
                {
                    "actions": [
                        {
                            "header_value_match": {
                                "descriptor_key": "exchange",
                                "descriptor_value": "exchange",
                                "headers": [
                                    {"name": ":path", "string_match": {"exact": EXCHANGE_PATH}}
                                ],
                            }
                        },
                        {
                            "masked_remote_address": {
                                "v4_prefix_mask_len": 32,
                                "v6_prefix_mask_len": _IPV6_SITE_BITS,
                            }
                        },
                    ]
                },
            ],
            "descriptors": descriptors,
        },
    )


def deny(refused: Mapping[str, Iterable[str]]) -> Resource:
    """Return the filter `DENIED_NAME`.

    Args:
        refused: Policy, which says why, to resource names of tenants, keys and identities.
    """
    policies = {
        policy: {
            "permissions": [{"any": True}],
            "principals": [_is(owner) for owner in sorted(owners)],
        }
        for policy, owners in refused.items()
        if owners
    }
    return typed(DENIED_NAME, {"@type": RBAC, "rules": {"action": "DENY", "policies": policies}})


def _told_of(owner: str) -> tuple[str, str]:
    """Which header tells a tenant, or who of a tenant calls; and its value."""
    name = owner.removeprefix("tenants/")
    return (CALLER_HEADER, owner) if "/" in name else (TENANT_HEADER, name)


def _is(owner: str) -> Mapping[str, Any]:
    header, value = _told_of(owner)
    return {"header": {"name": header, "string_match": {"exact": value}}}


def _value_of(header: str) -> Mapping[str, Any]:
    return {"request_headers": {"descriptor_key": header, "header_name": header}}


def _descriptor(
    entries: Sequence[Mapping[str, str]], tokens: int, interval: str
) -> Mapping[str, Any]:
    return {"entries": entries, "token_bucket": _bucket(tokens, interval)}


def _bucket(tokens: int, interval: str) -> Mapping[str, Any]:
    return {"max_tokens": tokens, "tokens_per_fill": tokens, "fill_interval": interval}
