"""Where a command finds the server: options of `servery` itself, or the environment."""

from dataclasses import dataclass
from pathlib import Path

import typer

from servery.client import Client


@dataclass(frozen=True, slots=True)
class Session:
    """What the options before the command said."""

    address: str
    api_key: str | None
    ca: Path | None


def connect(context: typer.Context) -> Client:
    """Return a client for the server of this command; to be used in a `with` block."""
    session: Session = context.find_root().obj
    if session.api_key is None:
        raise typer.BadParameter(
            "no key: set SERVERY_API_KEY or give --api-key before the command"
            " (`servery up` shows the first one)"
        )
    return Client(
        session.address,
        session.api_key,
        root_certificates=session.ca.read_bytes() if session.ca else None,
    )
