"""API keys: the credentials of programs, and what they permit."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, get_args

from servery.errors.v1 import error_reason_pb2 as reasons
from servery_rpc.errors import FieldInvalidError, PermissionDeniedError, ServeryError
from servery_rpc.identity import Verb
from servery_rpc.names import ApiKeyName

VERBS: Final[tuple[Verb, ...]] = get_args(Verb)

_PATTERN: Final = re.compile(r"\*|[a-z][a-z0-9-]{0,62}\*?")
_MAX_PATTERNS: Final = 100
_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Permission:
    """A verb on the models that patterns name."""

    verb: Verb

    models: tuple[str, ...]
    """Model ids; a `*` at the end stands for any rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A credential, without its secret."""

    name: ApiKeyName

    display_name: str

    permissions: tuple[Permission, ...]
    """At least one; each verb at most once."""

    create_time: datetime

    expire_time: datetime | None
    """When it stops working; None means never."""

    revoke_time: datetime | None
    """When it was revoked; None if it was not."""

    last_use_time: datetime | None = None
    """The minute of its last call; None if there was none."""

    def usable(self, now: datetime) -> bool:
        """Tell whether it can be exchanged for a token."""
        return self.revoke_time is None and (self.expire_time is None or now < self.expire_time)


class ApiKeyInvalidError(ServeryError):
    """The secret is not that of a usable key; why not is not told."""

    reason = reasons.ERROR_REASON_API_KEY_INVALID

    def __init__(self) -> None:
        super().__init__(
            "the API key is unknown, revoked or expired; ask an administrator of the tenant for a"
            " new one"
        )


class ApiKeyNotFoundError(ServeryError):
    """No key has this name."""

    reason = reasons.ERROR_REASON_API_KEY_NOT_FOUND

    def __init__(self, name: ApiKeyName) -> None:
        super().__init__(f"there is no API key {name}", name=str(name))


def narrowed(key: ApiKey, wanted: Sequence[Permission]) -> tuple[Permission, ...]:
    """Return the permissions for a token that shall have less than its key; none wanted: all.

    Raises:
        PermissionDeniedError: The key does not have one of them.
    """
    held = {permission.verb: permission.models for permission in key.permissions}
    for permission in wanted:
        for pattern in permission.models:
            if not any(_covers(own, pattern) for own in held.get(permission.verb, ())):
                raise PermissionDeniedError(
                    permission.verb, f"tenants/{key.name.tenant}/models/{pattern}"
                )
    return tuple(wanted) or key.permissions


def _covers(wider: str, narrower: str) -> bool:
    """Tell whether every model that fits one pattern fits another, wider one."""
    if wider.endswith("*"):
        return narrower.startswith(wider[:-1])
    return wider == narrower


def new_key_id() -> str:
    """Return the last part of a new key's resource name; no secret."""
    return secrets.token_hex(8)


def new_secret() -> str:
    """Return the secret of a new key: `sk-` and 256 random bits."""
    return f"sk-{secrets.token_urlsafe(_SECRET_BYTES)}"


def digest_of(secret: str, pepper: bytes) -> str:
    """Return what is stored of a secret: its HMAC-SHA256 under `pepper`, in hexadecimal.

    A secret has 256 random bits, so no slow hash is needed. A look-up by the digest tells nothing
    through its timing: nobody outside can choose digests.
    """
    return hmac.new(pepper, secret.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def parse_permissions(
    permissions: Sequence[tuple[Verb | None, Sequence[str]]], field: str
) -> tuple[Permission, ...]:
    """Parse the permissions asked for, each a verb (None: no known one) and patterns.

    Raises:
        FieldInvalidError: There is none, a verb comes twice, or one is malformed.
    """
    parsed: dict[Verb, Permission] = {}
    for index, (verb, models) in enumerate(permissions):
        here = f"{field}[{index}]"
        if verb is None:
            raise FieldInvalidError(f"{here}.verb", "unspecified", f"be one of {', '.join(VERBS)}")
        if verb in parsed:
            raise FieldInvalidError(f"{here}.verb", verb, "come once only; list its models there")
        if not 1 <= len(models) <= _MAX_PATTERNS:
            raise FieldInvalidError(
                f"{here}.models", len(models), f"have 1 to {_MAX_PATTERNS} items; `*` is all models"
            )
        for position, pattern in enumerate(models):
            if not _PATTERN.fullmatch(pattern):
                raise FieldInvalidError(
                    f"{here}.models[{position}]", pattern, f"match {_PATTERN.pattern}"
                )
        parsed[verb] = Permission(verb, tuple(models))
    if not parsed:
        raise FieldInvalidError(field, "empty", "have at least one permission")
    return tuple(parsed.values())
