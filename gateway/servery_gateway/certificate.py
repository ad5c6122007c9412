"""The certificate that Envoy shows to clients, read again when its files change."""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate chain and its key, as PEM."""

    chain: str
    key: str


class CertificateFiles:
    """A pair of PEM files. Used by one thread at a time; methods block.

    Raises:
        OSError: One cannot be read.
        RuntimeError: They are no pair.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain = chain
        self._key = key
        self._seen = self._stamp()
        self.certificate = self._read()

    def reload(self) -> bool:
        """Read the files again if they changed; return whether there is another certificate.

        Files that are no pair are logged and change nothing: they may be half replaced.
        """
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return False
            before, self.certificate = self.certificate, self._read()
            self._seen = stamp
        except (OSError, RuntimeError) as error:
            log.error("the certificate before stays in use: %s", error)
            return False
        return before != self.certificate

    def _stamp(self) -> tuple[int, ...]:
        stats = [path.stat() for path in (self._chain, self._key)]
        return tuple(part for s in stats for part in (s.st_mtime_ns, s.st_ino, s.st_size))

    def _read(self) -> Certificate:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._chain, self._key)
        except ssl.SSLError as error:
            raise RuntimeError(
                f"public_tls_certificate and public_tls_key are no pair of PEM files: {error}"
            ) from error
        return Certificate(self._chain.read_text(), self._key.read_text())
