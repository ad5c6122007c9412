"""Servery's client: the SDK, the generated stubs and the `servery` command.

from servery import Client

with Client("127.0.0.1:8080", api_key="sk-…") as servery:
    answer = servery.predict("digits", {"image": images})
"""

from servery.client import Client
from servery.errors import ApiError

__all__ = ["ApiError", "Client"]
