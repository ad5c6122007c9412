"""The keys that OIDC issuers sign with, fetched again and again."""

import asyncio
import contextlib
import http.client
import json
import logging
import urllib.request
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import jwt

from servery_gateway.identities import Issuer, is_safe_url
from servery_rpc.errors import ServeryError

log = logging.getLogger(__name__)

FETCH_EVERY_S: Final = 60.0
"""After which a new key of an issuer is known; issuers publish keys before they sign with them."""

_FETCH_AGAIN_S: Final = 2.0
"""When an issuer could not be asked."""

_TIMEOUT_S: Final = 10
_MAX_BYTES: Final = 1 << 20
_PUBLIC: Final = ("kty", "kid", "alg", "use", "n", "e", "crv", "x", "y")
"""What is kept of a key: never the secret part, whatever the issuer publishes."""

_KINDS: Final = ("RSA", "EC", "OKP")
"""Never a secret that both sides share: then who verifies could sign."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Goes nowhere but where it was sent, for that address alone was found safe."""

    def redirect_request(self, *_: Any) -> None:
        """Refuse."""


_OPENER: Final = urllib.request.build_opener(_NoRedirect)

Jwks = tuple[Mapping[str, str], ...]


class IssuerUnavailableError(Exception):
    """An issuer's keys cannot be had. The message says why."""


class IssuerKeys:
    """The public keys of issuers, as JSON Web Keys. Used by one thread at a time; `fetch` blocks.

    Args:
        issuers: Returns whose.
    """

    def __init__(self, issuers: Callable[[], Sequence[Issuer]]) -> None:
        self._issuers = issuers
        self._asked = asyncio.Event()
        self.jwks: Mapping[str, Jwks] = {}
        """URL of the issuer to its keys; those of which none are known are absent."""

    def ask(self) -> None:
        """Let `follow` fetch now."""
        self._asked.set()

    def fetch(self) -> tuple[bool, bool]:
        """Ask every issuer; what cannot be asked now keeps the keys it had.

        Returns:
            Whether `jwks` is another, and whether every issuer answered.
        """
        issuers = self._issuers()
        urls = {issuer.url for issuer in issuers}
        found, complete = {url: keys for url, keys in self.jwks.items() if url in urls}, True
        for issuer in issuers:
            try:
                found[issuer.url] = fetch_keys(issuer)
            except IssuerUnavailableError as error:
                complete = False
                log.error("the keys of issuer %s are not renewed: %s", issuer.name, error)
        changed, self.jwks = found != self.jwks, found
        return changed, complete

    async def follow(self, refresh: Callable[[], Awaitable[None]]) -> None:
        """Fetch again and again, until cancelled.

        Args:
            refresh: Returns once the data plane works by `jwks`.
        """
        due = False
        while True:
            self._asked.clear()
            changed, complete = await asyncio.to_thread(self.fetch)
            due |= changed
            if due:
                try:
                    await refresh()
                    due = False
                except ServeryError as error:
                    log.error("new keys of issuers are not in force: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FETCH_EVERY_S if complete else _FETCH_AGAIN_S):
                    await self._asked.wait()


def fetch_keys(issuer: Issuer) -> Jwks:
    """Return the keys that an issuer's discovery document points at. Blocks.

    Raises:
        IssuerUnavailableError: They cannot be had, or none of them can be used.
    """
    document = _get(f"{issuer.url.rstrip('/')}/.well-known/openid-configuration")
    if document.get("issuer") != issuer.url:
        raise IssuerUnavailableError(
            f"its discovery document is that of {str(document.get('issuer'))[:100]!r}"
        )
    address = document.get("jwks_uri")
    if not isinstance(address, str) or not is_safe_url(address):
        raise IssuerUnavailableError("its jwks_uri is no https:// URL")
    keys = _get(address).get("keys")
    usable = [_public(key) for key in keys if _is_usable(key)] if isinstance(keys, list) else []
    if not usable:
        raise IssuerUnavailableError("it publishes no key that tokens can be verified with")
    return tuple(usable)


def _get(address: str) -> Mapping[str, Any]:
    try:
        with _OPENER.open(address, timeout=_TIMEOUT_S) as response:
            content = response.read(_MAX_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise IssuerUnavailableError(f"{address} cannot be read: {error}") from None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise IssuerUnavailableError(f"{address} answers no JSON object of at most {_MAX_BYTES} B")
    return document


def _is_usable(key: Any) -> bool:
    if not isinstance(key, dict) or key.get("kty") not in _KINDS or key.get("use") == "enc":
        return False
    try:
        jwt.PyJWK.from_dict(_public(key))
    except jwt.PyJWTError:
        return False
    return True


def _public(key: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(key[name]) for name in _PUBLIC if name in key}
