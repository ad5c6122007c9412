"""TLS for a listener, with certificates that can change under running connections."""

import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the keys of a listener are. All are PEM."""

    certificate: Path
    """The chain of the server, leaf first."""

    key: Path
    """The private key of the leaf."""

    client_ca: Path | None = None
    """Who signs clients. If given, a client must show a certificate (mTLS)."""

    def paths(self) -> Sequence[Path]:
        """All files."""
        return [path for path in (self.certificate, self.key, self.client_ca) if path is not None]


class ReloadingTls:
    """A context for a listener that starts every handshake with the newest good files.

    Raises:
        OSError: A file cannot be read.
        ssl.SSLError: The files do not fit together.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamp = self._stamps()
        self._newest = _context(files)
        self.context = _context(files)
        """What to listen with."""
        self.context.sni_callback = self._choose

    def reload(self) -> None:
        """Use the files as they are now; connections that are open keep theirs.

        Raises:
            OSError: A file cannot be read; the old ones stay in use.
            ssl.SSLError: The files do not fit together; the old ones stay in use.
        """
        self._newest = _context(self._files)

    def reload_if_changed(self) -> None:
        """`reload` when a file is another than before; bad files are logged once and not used.

        Reads files: not for the event loop.
        """
        stamp = self._stamps()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.reload()
        except (OSError, ssl.SSLError) as error:
            log.error("the new TLS files are not usable, the old ones stay in use: %s", error)
        else:
            log.info("TLS files reloaded")

    def _choose(self, tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        tls.context = self._newest

    def _stamps(self) -> list[tuple[int, int, int]]:
        found = []
        for path in self._files.paths():
            try:
                status = path.stat()
            except FileNotFoundError:  # Between the two steps of a replacement.
                found.append((0, 0, 0))
            else:
                found.append((status.st_mtime_ns, status.st_ino, status.st_size))
        return found


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")  # What HTTP/2 allows (RFC 9113 9.2.2).
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(files.certificate, files.key)
    if files.client_ca is not None:
        context.load_verify_locations(files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
