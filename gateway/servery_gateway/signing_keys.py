"""The private keys of the platform's tokens, renewed so that no valid token is ever refused.

A new key is published, then it signs, and it stays published until the last token it signed has
expired. Files `signing-key-{seconds}.pem`, named by when they were made, since 1970.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Final

from servery_gateway.secret_files import load_or_create
from servery_gateway.tokens import TOKEN_TTL, SigningKey, generate_pem

PUBLISHED_AHEAD: Final = timedelta(minutes=10)
"""How long before its first signature a key is published: for who caches published keys."""

_MARGIN: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done with the keys there are, each known by when it was made."""

    make: bool
    """Whether it is time for a new one."""

    sign_with: datetime

    drop: tuple[datetime, ...]
    """Those whose last token has expired."""


def plan(made: Sequence[datetime], now: datetime, every: timedelta) -> Plan:
    """Decide; `made` has at least one item."""
    ordered = sorted(made)
    signing = [time for time in ordered if time + PUBLISHED_AHEAD <= now]
    sign_with = signing[-1] if signing else ordered[0]
    out_of_use = [
        time
        for time, successor in pairwise(ordered)
        if successor <= sign_with and successor + PUBLISHED_AHEAD + TOKEN_TTL + _MARGIN <= now
    ]
    return Plan(make=ordered[-1] + every <= now, sign_with=sign_with, drop=tuple(out_of_use))


class SigningKeys:
    """The keys in a directory. Used by one thread at a time; methods block.

    Args:
        directory: Where they are; the first is made if there is none.
        every: How long a key is the newest.
        now: The time.

    Raises:
        RuntimeError: A file holds no key.
    """

    def __init__(self, directory: Path, every: timedelta, now: datetime) -> None:
        self._directory = directory
        self._every = every
        first = directory / "signing-key.pem"
        if first.exists():  # As earlier releases called the only one.
            first.rename(self._path(datetime.fromtimestamp(first.stat().st_mtime, now.tzinfo)))
        self._keys: dict[datetime, SigningKey] = {}
        for path in sorted(directory.glob("signing-key-*.pem")):
            made = datetime.fromtimestamp(int(path.stem.rpartition("-")[2]), now.tzinfo)
            self._keys[made] = _read(path, path.read_bytes())
        if not self._keys:
            self._make(now)
        self._published = set(self._keys)

    @property
    def jwks(self) -> tuple[Mapping[str, str], ...]:
        """The public keys, as JSON Web Keys, the oldest first."""
        return tuple(self._keys[made].jwk for made in sorted(self._keys))

    def current(self, now: datetime) -> SigningKey:
        """Return the key to sign with."""
        return self._keys[plan(list(self._published), now, self._every).sign_with]

    def renew(self, now: datetime) -> bool:
        """Make and drop keys as time goes by.

        Returns:
            Whether `jwks` must be published; `published` is to be called when it was.
        """
        if plan(list(self._keys), now, self._every).make:
            self._make(now)
        dropped = plan(list(self._published), now, self._every).drop
        for made in dropped:
            self._published.discard(made)
            del self._keys[made]
            self._path(made).unlink(missing_ok=True)
        return bool(dropped) or self._published != set(self._keys)

    def published(self) -> None:
        """Take note that everybody who verifies tokens knows `jwks`: its keys may sign."""
        self._published = set(self._keys)

    def _make(self, now: datetime) -> None:
        made = now.replace(microsecond=0)
        path = self._path(made)
        self._keys[made] = _read(path, load_or_create(path, generate_pem))

    def _path(self, made: datetime) -> Path:
        return self._directory / f"signing-key-{int(made.timestamp())}.pem"


def _read(path: Path, pem: bytes) -> SigningKey:
    try:
        return SigningKey.from_pem(pem)
    except ValueError as error:
        raise RuntimeError(
            f"{path.name} in the data directory is damaged ({error}); restore it, or delete it to"
            " make the live tokens it signed invalid"
        ) from error
