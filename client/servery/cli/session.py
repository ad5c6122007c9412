"""Where a command finds the server: options of `servery` itself, or the environment."""

from dataclasses import dataclass
from pathlib import Path

import typer

from servery.client import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What the options before the command said."""

    address: str
    api_key: str | None
    token: str | None
    certificate: Path | None
    key: Path | None

    tenant: str | None
    """Resource name."""

    ca: Path | None


def connect(context: typer.Context) -> Client:
    """Return a client for the server of this command; to be used in a `with` block."""
    session: Session = context.find_root().obj
    if not (session.api_key or session.token or session.certificate):
        raise typer.BadParameter(
            "no key: set SERVERY_API_KEY or give --api-key before the command"
            " (`servery up` shows the first one)"
        )
    if (session.certificate is None) != (session.key is None):
        raise typer.BadParameter("--certificate and --key go together")
    return Client(
        session.address,
        session.api_key,
        token=session.token,
        certificate_chain=session.certificate.read_bytes() if session.certificate else None,
        private_key=session.key.read_bytes() if session.key else None,
        tenant=session.tenant,
        root_certificates=session.ca.read_bytes() if session.ca else None,
    )
