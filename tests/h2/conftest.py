"""Servers on a free port, and certificates."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from servery_h2 import Limits, Server
from tests.h2 import interop

Start = Callable[..., Awaitable["Serving"]]


@dataclass
class Serving:
    """A server under test."""

    server: Server
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start servers of the interop service with given limits; they stop at the end."""
    servers: list[Server] = []

    async def start(*, handlers: Any = (), **limits: Any) -> Serving:
        server = Server(limits=Limits(**limits))
        server.add_generic_rpc_handlers([interop.handlers(), *handlers])
        server.add_raw_unary_handler("/echo.Echo/Raw", lambda message, _: message)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        return Serving(server, port)

    yield start
    async with asyncio.timeout(10):
        for server in servers:
            await server.stop(0)


@dataclass(frozen=True)
class Authority:
    """A certificate authority that lives in a folder."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def path(self) -> Path:
        return self.folder / "ca.pem"

    def issue(self, name: str) -> tuple[Path, Path]:
        """Write `{name}.pem` and `{name}.key` for the host 127.0.0.1 and `name`."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign(name, key, self.certificate.subject, self.key, ca=False)
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return paths


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Signs certificates of servers and clients."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    certificate = _sign("test authority", key, subject, key, ca=True)
    (folder / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return Authority(folder, key, certificate)


def _sign(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    ca: bool,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if not ca:
        names = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())
