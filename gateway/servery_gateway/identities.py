"""Who else may call, besides holders of API keys: what the operator's file says.

People and programs that a company's OIDC issuer vouches for, and programs with client certificates.
What the file does not map to a tenant and to permissions is refused.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from servery_gateway.keys import VERBS, Permission, parse_permissions
from servery_gateway.tokens import ISSUER
from servery_rpc.errors import FieldInvalidError
from servery_rpc.names import TenantName
from servery_rpc.settings import is_private

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,30}")
_URI: Final = re.compile(r"spiffe://[a-z0-9._-]+/[A-Za-z0-9._/-]*\*?")

Claim = tuple[str, ...]
"""Where a claim is in a token: names of objects within objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """An OIDC issuer, and what its claims mean here."""

    name: str
    """Stands in the names of who it vouches for."""

    url: str
    """Its `iss`, below which its discovery document is."""

    audiences: tuple[str, ...]
    """One of these must be in the `aud` of a token."""

    tenant: str | None
    """Id of the tenant of all it vouches for; None: `tenants` says it."""

    tenant_claim: Claim
    tenants: Mapping[str, str]
    """Value of that claim to id of the tenant."""

    roles_claim: Claim
    """A list of texts, or one text with spaces between them."""

    roles: Mapping[str, tuple[Permission, ...]]
    """Value in that claim to what it permits."""

    @property
    def claims_key(self) -> str:
        """Where Envoy notes the claims of a token it verified."""
        return f"issuer:{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateIdentity:
    """What programs may do whose client certificates bear a name."""

    uri: str
    """The SPIFFE id; a `*` at the end stands for any rest."""

    tenant: str
    permissions: tuple[Permission, ...]


@dataclass(frozen=True, slots=True)
class Identities:
    """All of them."""

    issuers: tuple[Issuer, ...] = ()
    certificates: tuple[CertificateIdentity, ...] = ()

    @property
    def tenants(self) -> frozenset[str]:
        """Ids of every tenant that is named."""
        return frozenset(
            tenant
            for issuer in self.issuers
            for tenant in (issuer.tenant, *issuer.tenants.values())
            if tenant is not None
        ) | frozenset(identity.tenant for identity in self.certificates)


def read(path: Path) -> Identities:
    """Read a file of identities.

    Raises:
        OSError: It cannot be read.
        RuntimeError: It says something that cannot be; the message names it.
    """
    try:
        return parse(tomllib.loads(path.read_text("utf-8")))
    except (ValueError, FieldInvalidError) as error:  # Of TOML and of UTF-8 the first, too.
        raise RuntimeError(f"the file of identities: {error}") from None


def parse(document: Mapping[str, Any]) -> Identities:
    """Parse what a file of identities says.

    Raises:
        FieldInvalidError: A value is malformed.
        ValueError: A value is missing, of a wrong type, or one too many.
    """
    table = _Table(document, "")
    issuers = tuple(_issuer(part) for part in table.tables("issuers"))
    certificates = tuple(_certificate(part) for part in table.tables("certificates"))
    table.done()
    for values in ([i.name for i in issuers], [i.url for i in issuers]):
        if len(set(values)) != len(values):
            raise ValueError(f"issuers must differ in name and issuer, unlike {', '.join(values)}")
    return Identities(issuers, certificates)


def is_safe_url(url: str) -> bool:
    """Tell whether nobody on the way can change what is read from there."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (
        parts.scheme == "http" and bool(parts.hostname) and is_private(f"{parts.hostname}:0")
    )


class _Table:
    """A table of the file, whose values are taken one by one."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = dict(values)
        self.where = where

    def text(self, name: str) -> str:
        value = self._take(name, str)
        if not value:
            raise ValueError(f"{self.where}{name} is missing")
        return str(value)

    def claim(self, name: str) -> Claim:
        value = self._values.pop(name, ())
        return (value,) if isinstance(value, str) else self._texts(name, value)

    def texts(self, name: str) -> tuple[str, ...]:
        return self._texts(name, self._values.pop(name, ()))

    def mapping(self, name: str) -> Mapping[str, Any]:
        return self._take(name, dict) or {}

    def tables(self, name: str) -> "Sequence[_Table]":
        return [
            _Table(part, f"{self.where}{name}[{index}].")
            for index, part in enumerate(self._take(name, list) or [])
        ]

    def has(self, name: str) -> bool:
        return name in self._values

    def done(self) -> None:
        if self._values:
            raise ValueError(f"{self.where}{min(self._values)} is not known here")

    def _take(self, name: str, kind: type) -> Any:
        value = self._values.pop(name, None)
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{self.where}{name} must be a {kind.__name__}, not {value!r}")
        return value

    def _texts(self, name: str, value: Any) -> tuple[str, ...]:
        return _texts(value, f"{self.where}{name}")


def _issuer(table: _Table) -> Issuer:
    issuer = Issuer(
        tenant=_tenant(table.text("tenant"), f"{table.where}tenant")
        if table.has("tenant")
        else None,
        name=table.text("name"),
        url=table.text("issuer"),
        audiences=table.texts("audiences"),
        tenant_claim=table.claim("tenant_claim"),
        tenants={
            str(value): _tenant(tenant, f"{table.where}tenants.{value}")
            for value, tenant in table.mapping("tenants").items()
        },
        roles_claim=table.claim("roles_claim"),
        roles={
            role: _permissions(permissions, f"{table.where}roles.{role}")
            for role, permissions in table.mapping("roles").items()
        },
    )
    table.done()
    rules = {
        "name": (bool(_NAME.fullmatch(issuer.name)), f"match {_NAME.pattern}"),
        "issuer": (
            is_safe_url(issuer.url) and issuer.url != ISSUER,
            "be an https:// URL, or an http:// one of this machine",
        ),
        "audiences": (bool(issuer.audiences), "have at least one item"),
        "roles": (bool(issuer.roles and issuer.roles_claim), "be there, and roles_claim too"),
        "tenant": (
            (issuer.tenant is None) == bool(issuer.tenant_claim and issuer.tenants),
            "be there, or tenant_claim and tenants instead",
        ),
    }
    for name, (holds, rule) in rules.items():
        if not holds:
            raise ValueError(f"{table.where}{name} must {rule}")
    return issuer


def _certificate(table: _Table) -> CertificateIdentity:
    identity = CertificateIdentity(
        uri=table.text("uri"),
        tenant=_tenant(table.text("tenant"), f"{table.where}tenant"),
        permissions=_permissions(table.mapping("permissions"), f"{table.where}permissions"),
    )
    table.done()
    if not _URI.fullmatch(identity.uri):
        raise ValueError(
            f"{table.where}uri is {identity.uri!r}; it must be like"
            " spiffe://example.org/ns/shop/sa/web, with a * at its end for any rest"
        )
    return identity


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, str) for part in value):
        raise ValueError(f"{where} must be a list of texts, not {value!r}")
    return tuple(value)


def _tenant(text: object, field: str) -> str:
    return TenantName.parse(f"tenants/{text}", field).tenant


def _permissions(value: object, field: str) -> tuple[Permission, ...]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{field} must be a table such as {{ infer = ['*'] }}, not {value!r}")
    verbs = {verb: verb for verb in VERBS}
    for verb in value:
        if verb not in verbs:
            raise ValueError(f"{field}.{verb} is no verb; use one of {', '.join(VERBS)}")
    wanted = [(verbs[verb], _texts(models, f"{field}.{verb}")) for verb, models in value.items()]
    return parse_permissions(wanted, field)
