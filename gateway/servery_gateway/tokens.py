"""Tokens: signed, short-lived statements of who calls and what it may do."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Final, Self

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from servery_gateway.keys import ApiKey, Permission
from servery_rpc.errors import FieldInvalidError

ISSUER: Final = "servery"
AUDIENCE: Final = "servery"
TOKEN_TTL: Final = timedelta(minutes=10)

_SECOND: Final = timedelta(seconds=1)

_MAX_PERMISSIONS_BYTES: Final = 4096
"""Of the permissions as JSON. They travel in a header, and gRPC servers take 8 KiB of those."""


@dataclass(frozen=True, slots=True)
class Token:
    """What a key is exchanged for."""

    text: str
    """A JSON Web Token, ES256."""

    valid_for: timedelta

    permissions: tuple[Permission, ...]
    """What it permits."""


@dataclass(frozen=True)
class SigningKey:
    """The private key of the platform's tokens."""

    private_key: ec.EllipticCurvePrivateKey

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Read what `generate_pem` wrote.

        Raises:
            ValueError: `pem` holds no private key on the curve P-256.
        """
        key = serialization.load_pem_private_key(pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise ValueError("it is no EC key on the curve P-256")
        return cls(key)

    @cached_property
    def jwk(self) -> Mapping[str, str]:
        """The public key, as a JSON Web Key."""
        numbers = self.private_key.public_key().public_numbers()
        key = {"crv": "P-256", "kty": "EC", "x": _base64url(numbers.x), "y": _base64url(numbers.y)}
        thumbprint = hashlib.sha256(json.dumps(key, separators=(",", ":")).encode()).hexdigest()
        return {**key, "alg": "ES256", "kid": thumbprint[:16], "use": "sig"}

    def mint(
        self,
        key: ApiKey,
        now: datetime,
        permissions: tuple[Permission, ...],
        valid_for: timedelta = TOKEN_TTL,
    ) -> Token:
        """Return a token for the holder of `key`, which is usable; it does not outlive the key.

        Args:
            key: Whose token it is.
            now: The time.
            permissions: No more than those of the key.
            valid_for: How long it is valid, if the key is.
        """
        expires = now + valid_for
        if key.expire_time is not None:
            expires = min(expires, key.expire_time)
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(key.name),
            "tenant": key.name.tenant,
            "permissions": _claim(permissions),
            "iat": int(now.timestamp()),
            "exp": int(expires.timestamp()),
        }
        text = jwt.encode(
            claims, self.private_key, algorithm="ES256", headers={"kid": self.jwk["kid"]}
        )
        return Token(text, expires - now, permissions)


def parse_valid_for(asked: timedelta | None, field: str) -> timedelta:
    """Parse how long a token shall be valid; None: as long as possible.

    Raises:
        FieldInvalidError: It is out of its range.
    """
    if asked is None:
        return TOKEN_TTL
    if not _SECOND <= asked <= TOKEN_TTL:
        longest = int(TOKEN_TTL.total_seconds())
        raise FieldInvalidError(field, f"{asked.total_seconds()} s", f"be 1 s to {longest} s")
    return asked


def generate_pem() -> bytes:
    """Return a new private key on the curve P-256, as PEM without a passphrase."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def require_fit(permissions: tuple[Permission, ...], field: str) -> None:
    """Refuse permissions that no token could carry.

    Raises:
        FieldInvalidError: They are too long.
    """
    size = len(json.dumps(_claim(permissions)))
    if size > _MAX_PERMISSIONS_BYTES:
        raise FieldInvalidError(
            field,
            f"{size} bytes",
            f"fit in {_MAX_PERMISSIONS_BYTES} bytes; use patterns such as `fraud-*`",
        )


def _claim(permissions: tuple[Permission, ...]) -> dict[str, Any]:
    return {permission.verb: list(permission.models) for permission in permissions}


def _base64url(coordinate: int) -> str:
    return base64.urlsafe_b64encode(coordinate.to_bytes(32, "big")).rstrip(b"=").decode()
