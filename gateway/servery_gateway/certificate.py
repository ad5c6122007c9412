"""The certificate that Envoy shows to clients."""

import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate chain and its key, as PEM."""

    chain: str
    key: str


def read_certificate(chain: Path, key: Path) -> Certificate:
    """Read a pair of PEM files.

    Raises:
        OSError: One cannot be read.
        RuntimeError: They are no pair.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key)
    except ssl.SSLError as error:
        raise RuntimeError(
            f"public_tls_certificate and public_tls_key are no pair of PEM files: {error}"
        ) from error
    return Certificate(chain.read_text(), key.read_text())
