"""Addresses, TLS, and several processes on one port."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from servery_h2 import Server, TlsFiles
from tests.h2.conftest import Authority
from tests.h2.wire import ECHO, eventually, method


async def whoami(_: bytes, context: Any) -> bytes:
    identities = context.peer_identities() or ()
    return b"|".join([context.peer().encode(), *identities])


def server(**options: Any) -> Server:
    made = Server(**options)
    made.add_raw_unary_handler(ECHO, lambda message, _: message)
    made.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                "t.T", {"Who": grpc.unary_unary_rpc_method_handler(whoami)}
            )
        ]
    )
    return made


@asynccontextmanager
async def serving(made: Server) -> AsyncIterator[None]:
    await made.start()
    try:
        yield
    finally:
        await made.stop(0)


async def echo(channel: grpc.aio.Channel) -> None:
    assert await method(channel)(b"x", timeout=5) == b"x"


@pytest.mark.parametrize("scheme", ["unix:", "unix://"])
async def test_a_unix_socket_is_served_and_removed(tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "s"
    own = [("grpc.use_local_subchannel_pool", 1)]  # Else the last connection may be used again.
    for _ in range(2):
        made = server()
        made.add_insecure_port(f"{scheme}{path}")
        async with serving(made), grpc.aio.insecure_channel(f"unix:{path}", own) as channel:
            await echo(channel)
            assert await method(channel, "/t.T/Who")(b"") == b"unix:"
        assert not path.exists()


async def test_a_unix_socket_that_lives_is_not_taken(tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 's'}"
    made = server()
    made.add_insecure_port(address)
    async with serving(made):
        with pytest.raises(RuntimeError):
            server().add_insecure_port(address)


async def test_a_port_that_is_taken_is_refused() -> None:
    made = server()
    port = made.add_insecure_port("localhost:0")
    async with serving(made), grpc.aio.insecure_channel(f"localhost:{port}") as channel:
        await echo(channel)
        with pytest.raises(RuntimeError):
            server().add_insecure_port(f"localhost:{port}")


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:x", "256.0.0.1:1", "unix:/no/dir/s"])
def test_an_address_that_cannot_be_bound_is_refused(address: str) -> None:
    with pytest.raises(RuntimeError):
        server().add_insecure_port(address)


async def test_two_servers_share_a_port_when_asked() -> None:
    first, second = server(reuse_port=True), server(reuse_port=True)
    port = first.add_insecure_port("127.0.0.1:0")
    assert second.add_insecure_port(f"127.0.0.1:{port}") == port
    seen: Counter[int] = Counter()
    async with serving(first), serving(second):
        for _ in range(64):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await reader.readexactly(9)
            seen.update(number for number in (1, 2) if (first, second)[number - 1].num_connections)
            writer.close()
            await writer.wait_closed()
            await eventually(lambda: not first.num_connections + second.num_connections)
    assert set(seen) == {1, 2}


async def test_tls_is_spoken(authority: Authority) -> None:
    made = server()
    port = made.add_tls_port("127.0.0.1:0", TlsFiles(*authority.issue("here")))
    credentials = grpc.ssl_channel_credentials(authority.path.read_bytes())
    async with serving(made), grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        await echo(channel)
        body = bytes(3_000_000)
        assert await method(channel)(body, timeout=10) == body


async def test_a_client_without_a_certificate_is_not_let_in(authority: Authority) -> None:
    made = server()
    files = TlsFiles(*authority.issue("here"), client_ca=authority.path)
    port = made.add_tls_port("127.0.0.1:0", files)
    root = authority.path.read_bytes()
    certificate, key = authority.issue("alice")
    async with serving(made):
        nobody = grpc.ssl_channel_credentials(root)
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", nobody) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await echo(channel)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        alice = grpc.ssl_channel_credentials(root, key.read_bytes(), certificate.read_bytes())
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", alice) as channel:
            who = await method(channel, "/t.T/Who")(b"", timeout=5)
    assert b"alice" in who.split(b"|")[1:]


async def test_certificates_change_under_running_connections(
    authority: Authority, tmp_path: Path
) -> None:
    def install(name: str) -> None:
        for source, target in zip(authority.issue(name), ("c.pem", "c.key"), strict=True):
            shutil.copy(source, tmp_path / target)

    install("first")
    made = server()
    files = TlsFiles(tmp_path / "c.pem", tmp_path / "c.key", client_ca=authority.path)
    port = made.add_tls_port("127.0.0.1:0", files)
    certificate, key = authority.issue("bob")
    credentials = grpc.ssl_channel_credentials(
        authority.path.read_bytes(), key.read_bytes(), certificate.read_bytes()
    )
    context = ssl.create_default_context(cafile=str(authority.path))
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])

    async def shown() -> str:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        certificate = writer.get_extra_info("peercert")
        writer.transport.abort()
        return str(certificate["subject"][0][0][1])

    async with serving(made), grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        await echo(channel)
        assert await shown() == "first"
        install("second")
        made.reload_tls()
        assert await shown() == "second"
        (tmp_path / "c.pem").write_text("not a certificate")
        with pytest.raises(ssl.SSLError):
            made.reload_tls()
        assert await shown() == "second"
        await echo(channel)
        assert made.num_connections >= 1


async def test_a_tls_client_of_http_1_is_not_served(authority: Authority) -> None:
    made = server()
    port = made.add_tls_port("127.0.0.1:0", TlsFiles(*authority.issue("here")))
    context = ssl.create_default_context(cafile=str(authority.path))
    context.set_alpn_protocols(["http/1.1"])
    async with serving(made):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.transport.abort()


@pytest.mark.parametrize("is_secure", [False, True])
async def test_connections_that_others_accept_can_be_adopted(
    authority: Authority, *, is_secure: bool
) -> None:
    made = server()
    files = TlsFiles(*authority.issue("here")) if is_secure else None
    adopt = made.add_adopted_port(files)
    adopting: list[asyncio.Task[None]] = []

    async def accept(listener: socket.socket) -> None:
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            adopting.append(asyncio.ensure_future(adopt(connection)))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        credentials = grpc.ssl_channel_credentials(authority.path.read_bytes())
        channel = (
            grpc.aio.secure_channel(address, credentials)
            if is_secure
            else grpc.aio.insecure_channel(address)
        )
        async with serving(made), channel:
            accepting = asyncio.create_task(accept(listener))
            await echo(channel)
            assert made.num_connections == 1
            if is_secure:
                _, writer = await asyncio.open_connection(*listener.getsockname())
                writer.write(b"this is not TLS")
                writer.close()
                await eventually(lambda: len(adopting) == 2)
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await adopting[1]
            accepting.cancel()
            await echo(channel)
