"""The filter that knows callers without an API key, and who may have how much in flight. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from servery_gateway.extensions import LUA, RBAC, script, typed
from servery_gateway.identities import CertificateIdentity, Identities, Issuer
from servery_gateway.keys import Permission
from servery_gateway.snapshot import Resource

CALLERS_NAME: Final = "known-callers"
"""It comes by itself, so that no connection ends for another limit."""

CALLERS_KINDS: Final = (LUA, RBAC)
"""It is a script only where there is something to know; else it lets all pass, at no cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Callers:
    """What the filter knows."""

    in_flight: Mapping[str, int] = field(default_factory=dict)
    """Resource name of a tenant, key or identity to how many requests it may have in flight."""

    identities: Identities = field(default_factory=Identities)

    revoked: frozenset[str] = frozenset()
    """Resource names of identities that are refused."""


def callers(known: Callers, public_paths: Sequence[str]) -> Resource:
    """Return the filter `CALLERS_NAME`.

    Args:
        known: What it knows.
        public_paths: HTTP paths that need no identity.
    """
    if not known.in_flight and known.identities == Identities():
        return typed(CALLERS_NAME, {"@type": RBAC})
    tables = {
        "IN_FLIGHT": dict(sorted(known.in_flight.items())),
        "REVOKED": dict.fromkeys(sorted(known.revoked), True),
        "PUBLIC": dict.fromkeys(public_paths, True),
        "ISSUERS": [_issuer(issuer) for issuer in known.identities.issuers],
        "CERTIFICATES": [_certificate(identity) for identity in known.identities.certificates],
    }
    written = "\n".join(f"local {name} = {lua(value)}" for name, value in tables.items())
    return typed(CALLERS_NAME, script("refusal.lua", "callers.lua", before=written))


def lua(value: Any) -> str:
    """Render a value as Lua has it; no text can end its quotes."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"[{lua(key)}] = {lua(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "{" + ", ".join(lua(part) for part in value) + "}"
    if isinstance(value, str):
        return '"' + "".join(_character(byte) for byte in value.encode()) + '"'
    return json.dumps(value)


def _character(byte: int) -> str:
    plain = 32 <= byte < 127 and chr(byte) not in '"\\'
    return chr(byte) if plain else f"\\{byte:03d}"


def _issuer(issuer: Issuer) -> Mapping[str, Any]:
    return {
        "key": issuer.claims_key,
        "name": issuer.name,
        **({"tenant": issuer.tenant} if issuer.tenant else {}),
        "tenant_claim": issuer.tenant_claim,
        "tenants": issuer.tenants,
        "roles_claim": issuer.roles_claim,
        "roles": {role: _permissions(permitted) for role, permitted in issuer.roles.items()},
    }


def _certificate(identity: CertificateIdentity) -> Mapping[str, Any]:
    return {
        "uri": identity.uri,
        "tenant": identity.tenant,
        "permissions": _permissions(identity.permissions),
    }


def _permissions(permissions: Sequence[Permission]) -> Mapping[str, Any]:
    return {permission.verb: permission.models for permission in permissions}
