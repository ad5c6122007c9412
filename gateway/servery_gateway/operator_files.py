"""What the operator's files say, read again when they change."""

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from servery_gateway.certificate import Certificate, read_certificate
from servery_gateway.identities import Identities, read
from servery_gateway.settings import GatewaySettings

log = logging.getLogger(__name__)

T = TypeVar("T")


class Followed(Generic[T]):
    """What some files say. Used by one thread at a time; methods block.

    Args:
        what: It is, for the log.
        paths: The files.
        read: Returns what they say.

    Raises:
        OSError: One cannot be read.
        RuntimeError: They say something that cannot be.
    """

    def __init__(self, what: str, paths: tuple[Path, ...], read: Callable[[], T]) -> None:
        self._what = what
        self._paths = paths
        self._read = read
        self._seen = self._stamp()
        self.value = read()

    def reload(self) -> bool:
        """Read the files again if they changed; return whether they say something else.

        Files that say something that cannot be are logged, once, and change nothing: they may be
        half replaced.
        """
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            before, self.value = self.value, self._read()
        except (OSError, RuntimeError) as error:
            log.error("%s of before stays in use: %s", self._what, error)
            return False
        return before != self.value

    def _stamp(self) -> tuple[int, ...]:
        try:
            stats = [path.stat() for path in self._paths]
        except OSError:
            return ()
        return tuple(part for s in stats for part in (s.st_mtime_ns, s.st_ino, s.st_size))


class OperatorFiles:
    """All of them. `reload` blocks and is for one thread at a time; any may read the rest.

    Raises:
        OSError: One cannot be read.
        RuntimeError: One says something that cannot be.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        chain, key = settings.public_tls_certificate, settings.public_tls_key
        self._certificate: Followed[Certificate] | None = (
            Followed("the certificate", (chain, key), lambda: read_certificate(chain, key))
            if chain and key
            else None
        )
        ca = settings.public_client_ca
        self._client_ca = Followed("the client CA", (ca,), lambda: _read_ca(ca)) if ca else None
        path = settings.identities
        self._identities = (
            Followed("the file of identities", (path,), lambda: read(path)) if path else None
        )

    @property
    def certificate(self) -> Certificate | None:
        """What Envoy shows clients; None: nothing."""
        return self._certificate.value if self._certificate else None

    @property
    def client_ca(self) -> str | None:
        """What client certificates are checked against, as PEM; None: nobody is asked for one."""
        return self._client_ca.value if self._client_ca else None

    @property
    def identities(self) -> Identities:
        """Who may call without a key."""
        return self._identities.value if self._identities else Identities()

    def reload(self) -> bool:
        """Read again what changed; return whether anything is another."""
        followed = (self._certificate, self._client_ca, self._identities)
        changed = [files.reload() for files in followed if files is not None]
        return any(changed)


def _read_ca(path: Path) -> str:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except ssl.SSLError as error:
        raise RuntimeError(f"public_client_ca is no PEM file of certificates: {error}") from error
    return path.read_text("utf-8")
