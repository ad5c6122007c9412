"""Plain HTTP/1.1 to the gateway, as curl would."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http.client import HTTPConnection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.gateway.conftest import Stack


async def ask(
    stack: Stack, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, Mapping[str, str], bytes]:
    """Return status, headers and body of the answer; `_` in names of headers stands for `-`."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return await asyncio.to_thread(_ask, stack.settings.public_listen, method, path, body, names)


def _ask(
    address: str, method: str, path: str, body: bytes, headers: Mapping[str, str]
) -> tuple[int, Mapping[str, str], bytes]:
    connection = HTTPConnection(address, timeout=10)
    try:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return response.status, found, response.read()
    finally:
        connection.close()
