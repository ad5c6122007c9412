"""Who calls: what Envoy verified, as the servers behind it read it.

Envoy takes `x-servery-claims` off every request that comes in and puts the payload of the token it
verified there itself. A call without the header came over a private socket or loopback, which
only processes of the platform reach: it may do anything.
"""

from __future__ import annotations  # grpc's generics exist only in its stubs.

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

import grpc

from servery_rpc.errors import PermissionDeniedError
from servery_rpc.names import DEFAULT_TENANT, ModelName

CLAIMS_HEADER: Final = "x-servery-claims"

Verb = Literal["infer", "read", "train", "publish", "promote", "admin"]


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of a token, or a process of the platform."""

    tenant: str | None
    """Id of the tenant; None for a process of the platform."""

    permissions: Mapping[str, Sequence[str]]
    """Verb to model patterns; a `*` at the end of a pattern stands for any rest."""

    key: str = ""
    """Resource name of the API key."""

    def may(self, verb: Verb, tenant: str, model: str | None = None) -> bool:
        """Tell whether the caller may `verb` in `tenant`: on `model`, or on some model at least."""
        if self.tenant is None:
            return True
        patterns = self.permissions.get(verb, ())
        if verb == "admin" and self.tenant == DEFAULT_TENANT and patterns:
            return True
        if self.tenant != tenant:
            return False
        return bool(patterns) if model is None else any(matches(p, model) for p in patterns)

    def require(self, verb: Verb, tenant: str, model: str | None = None) -> None:
        """Refuse unless the caller `may`.

        Raises:
            PermissionDeniedError: It may not.
        """
        if not self.may(verb, tenant, model):
            resource = ModelName(tenant, model) if model else f"tenants/{tenant}"
            raise PermissionDeniedError(verb, str(resource))


PLATFORM: Final = Caller(tenant=None, permissions={})
"""A process of the platform itself."""


def matches(pattern: str, model: str) -> bool:
    """Tell whether the model id fits the pattern: equal, or equal up to a `*` at the end."""
    if pattern.endswith("*"):
        return model.startswith(pattern[:-1])
    return model == pattern


def caller_of(context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
    """Return who made this RPC."""
    for key, value in context.invocation_metadata() or ():
        if key == CLAIMS_HEADER:
            return caller_from(str(value))
    return PLATFORM


@lru_cache(maxsize=1024)
def caller_from(claims: str) -> Caller:
    """Read the value of `CLAIMS_HEADER`; callers repeat themselves, so it is remembered.

    Raises:
        ValueError: It is not what Envoy writes.
        KeyError: A claim is missing.
    """
    read = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    return Caller(read["tenant"], read["permissions"], read["sub"])
