"""Who is at the other end: an address, and what TLS proved about it."""

import asyncio
import socket
from collections.abc import Mapping
from typing import Any


def name_of(transport: asyncio.BaseTransport) -> str:
    """Return the address of the peer as gRPC writes it: `ipv4:127.0.0.1:40000`, `unix:`."""
    address = transport.get_extra_info("peername")
    if not isinstance(address, tuple):
        return "unix:"
    host, port = address[:2]
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_INET6:
        return f"ipv6:[{host}]:{port}"
    return f"ipv4:{host}:{port}"


def auth_context_of(transport: asyncio.BaseTransport) -> Mapping[str, list[bytes]]:
    """Return what TLS proved, under the keys gRPC uses; empty without TLS."""
    tls: Any = transport.get_extra_info("ssl_object")
    if tls is None:
        return {}
    context: dict[str, list[bytes]] = {"transport_security_type": [b"ssl"]}
    certificate = tls.getpeercert()
    if not certificate:
        return context
    names = [value.encode() for _, value in certificate.get("subjectAltName", ())]
    if names:
        context["x509_subject_alternative_name"] = names
    for relative_name in certificate.get("subject", ()):
        for key, value in relative_name:
            if key == "commonName":
                context["x509_common_name"] = [value.encode()]
    return context
