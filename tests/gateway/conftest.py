"""The gateway as deployed: control plane, Envoy, and servers behind that record who called."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec

from servery.errors import ApiError
from servery.gateway.v1 import gateway_pb2 as pb
from servery.gateway.v1 import gateway_pb2_grpc as pb_grpc
from servery_gateway.control_plane import control_plane
from servery_gateway.envoy import admin, is_ready
from servery_gateway.methods import INFERENCE, REGISTRY, TRAINER, methods
from servery_gateway.settings import GatewaySettings
from servery_gateway.tokens import SigningKey
from tests.gateway.backend import Backend, backend, message_classes

VERBS = ("infer", "read", "train", "publish", "promote", "admin")
OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]


@contextmanager
def process(*argv: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python module as a process; stop it in the end."""
    with log.open("ab") as file:
        running = subprocess.Popen([sys.executable, "-m", *argv], stdout=file, stderr=file)
    try:
        yield running
    finally:
        running.terminate()
        running.wait(15)


def envoy(directory: Path, *more: str) -> Any:
    """Run Envoy on the control plane of `directory`, with more flags."""
    argv = ("--ads", f"unix:{directory}/gateway.sock", "--run-dir", str(directory / "envoy"))
    return process("servery_gateway.envoy", *argv, *more, log=directory / "envoy.log")


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 40.0) -> float:
    """Poll until `condition` holds; return after how many seconds it did."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 other processes set no event
            await asyncio.sleep(0.02)
    return loop.time() - start


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A running gateway."""

    directory: Path
    settings: GatewaySettings
    channel: grpc.aio.Channel
    """To Envoy, as clients reach it."""
    blocking: grpc.Channel
    """The same without asyncio, where a stream that is refused while it is sent may end as an error
    of the library (grpc/grpc#36066)."""
    platform: grpc.aio.Channel
    """To the control plane's own socket."""
    backends: dict[str, Backend]
    backend_exits: dict[str, AsyncExitStack]

    async def start_backend(self, name: str) -> None:
        """Serve the upstream `name`."""
        exits = AsyncExitStack()
        server = backend(name, self.directory / f"{name}.sock")
        self.backends[name] = await exits.enter_async_context(server)
        self.backend_exits[name] = exits

    async def stop_backend(self, name: str) -> None:
        """Serve it no more."""
        await self.backend_exits.pop(name).aclose()

    async def is_healthy(self) -> bool:
        """Tell whether Envoy takes every server behind it for healthy."""
        path = "/stats?filter=membership_healthy"
        _, text = await asyncio.to_thread(admin, self.directory / "envoy", "GET", path)
        counts = dict(line.split(": ") for line in text.splitlines())
        return all(
            counts.get(f"cluster.{name}.membership_healthy") == "1"
            for name in (*self.backends, "gateway")
        )

    @property
    def signing_key(self) -> SigningKey:
        newest = max(self.settings.data_dir.glob("signing-key-*.pem"))
        return SigningKey.from_pem(newest.read_bytes())

    async def new_key(self, tenant: str = "default", /, **permissions: Sequence[str]) -> Any:
        """Create a key as the platform does."""
        key = pb.ApiKey(
            permissions=[
                pb.Permission(verb=pb.Verb.Value(f"VERB_{verb.upper()}"), models=models)
                for verb, models in permissions.items()
            ]
        )
        if tenant != "default":
            request = pb.CreateTenantRequest(tenant=pb.Tenant(name=f"tenants/{tenant}"))
            with contextlib.suppress(grpc.aio.AioRpcError):  # It may exist.
                await pb_grpc.TenantServiceStub(self.platform).CreateTenant(request)
        return await pb_grpc.ApiKeyServiceStub(self.platform).CreateApiKey(
            pb.CreateApiKeyRequest(parent=f"tenants/{tenant}", api_key=key)
        )

    async def exchange(self, secret: str) -> str:
        """Exchange a key for a token, through Envoy."""
        response = await pb_grpc.AuthServiceStub(self.channel).ExchangeApiKey(
            pb.ExchangeApiKeyRequest(api_key=secret)
        )
        return response.access_token

    async def token(self, tenant: str = "default", /, **permissions: Sequence[str]) -> str:
        """Return the token of a new key."""
        return await self.exchange((await self.new_key(tenant, **permissions)).secret)

    def forged(self, key: ec.EllipticCurvePrivateKey | None = None, **claims: Any) -> str:
        """Sign claims that the gateway would not, with its own key or another one."""
        now = int(time.time())
        whole: dict[str, Any] = {
            "iss": "servery",
            "aud": "servery",
            "sub": "tenants/default/apiKeys/x",
            "tenant": "default",
            "permissions": {"read": ["*"]},
            "iat": now,
            "exp": now + 60,
        }
        whole.update(claims)
        whole = {name: value for name, value in whole.items() if value is not None}
        own = self.signing_key
        headers = {"kid": own.jwk["kid"]}
        return jwt.encode(whole, key or own.private_key, "ES256", headers=headers)

    async def call(
        self,
        path: str,
        token: str | None = None,
        request: Any = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> Any:
        """Call any method with one message (default: an empty one); return the first answer."""
        method = next(m for m in methods() if m.path == path)
        request_class, response_class = message_classes(method)
        message = request_class() if request is None else request
        kind = (
            f"{'stream' if method.client_streaming else 'unary'}_"
            f"{'stream' if method.server_streaming else 'unary'}"
        )
        codec = (request_class.SerializeToString, response_class.FromString)
        headers = list(metadata)
        if token is not None:
            headers.append(("authorization", f"Bearer {token}"))
        if method.client_streaming:
            stream = getattr(self.blocking, kind)(path, *codec)

            def first_answer() -> Any:
                answers = stream(iter([message]), metadata=headers, timeout=20)
                if not method.server_streaming:
                    return answers
                first = next(answers, grpc.aio.EOF)
                answers.cancel()
                return first

            first = await asyncio.to_thread(first_answer)
            assert first is not grpc.aio.EOF
            return first
        call = getattr(self.channel, kind)(path, *codec)(message, metadata=headers, timeout=20)
        if method.server_streaming:
            first = await call.read()
            assert first is not grpc.aio.EOF
            call.cancel()
            return first
        return await call

    async def refusal(
        self, path: str, token: str | None = None, request: Any = None, **kwargs: Any
    ) -> ApiError:
        """Call a method that must fail; return how it did."""
        with pytest.raises(grpc.RpcError) as caught:
            await self.call(path, token, request, **kwargs)
        return ApiError.of(caught.value)


def settings_for(directory: Path, **more: Any) -> GatewaySettings:
    """Settings of a gateway that keeps everything in `directory`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return GatewaySettings(
        listen=f"unix:{directory}/gateway.sock",
        data_dir=directory / "data",
        public_listen=f"127.0.0.1:{port}",
        inference=f"unix:{directory}/inference.sock",
        registry=f"unix:{directory}/registry.sock",
        trainer=f"unix:{directory}/trainer.sock",
        drain_s=1,
        **more,
    )


def all_healthy(run_dir: Path) -> bool:
    """Tell whether Envoy has found every server behind it healthy."""
    text = admin(run_dir, "GET", "/stats?filter=membership_(healthy|total)$")[1]
    hosts = dict(line.split(": ") for line in text.splitlines())
    totals = {name: count for name, count in hosts.items() if name.endswith("total")}
    return all(hosts[n.removesuffix("total") + "healthy"] == c for n, c in totals.items())


@asynccontextmanager
async def running_stack(
    settings: GatewaySettings,
    directory: Path,
    credentials: grpc.ChannelCredentials | None = None,
    *envoy_flags: str,
    upstreams: Sequence[str] = (INFERENCE, REGISTRY, TRAINER),
) -> AsyncIterator[Stack]:
    """Run Envoy and `upstreams`; the control plane must run or come up already."""
    async with AsyncExitStack() as exits:
        exits.enter_context(envoy(directory, *envoy_flags))
        if credentials is None:
            channel = grpc.aio.insecure_channel(settings.public_listen, OPTIONS)
            blocking = grpc.insecure_channel(settings.public_listen, OPTIONS)
        else:
            channel = grpc.aio.secure_channel(settings.public_listen, credentials, OPTIONS)
            blocking = grpc.secure_channel(settings.public_listen, credentials, OPTIONS)
        stack = Stack(
            directory=directory,
            settings=settings,
            channel=await exits.enter_async_context(channel),
            blocking=exits.enter_context(blocking),
            platform=await exits.enter_async_context(
                grpc.aio.insecure_channel(settings.listen, OPTIONS)
            ),
            backends={},
            backend_exits={},
        )
        for name in upstreams:
            await stack.start_backend(name)
        await until(lambda: asyncio.to_thread(is_ready, directory / "envoy"))
        await until(lambda: asyncio.to_thread(all_healthy, directory / "envoy"))
        try:
            yield stack
        finally:
            for name in tuple(stack.backend_exits):
                await stack.stop_backend(name)


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose name leaves room for the name of a unix socket."""
    with tempfile.TemporaryDirectory(prefix="servery-") as name:
        yield Path(name)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def session_stack() -> AsyncIterator[Stack]:
    with short_directory() as directory:
        settings = settings_for(directory)
        async with control_plane(settings), running_stack(settings, directory) as running:
            yield running


@pytest_asyncio.fixture(loop_scope="session")
async def stack(session_stack: Stack) -> Stack:
    """One gateway for every test that does not break it.

    Its servers stand still while tests without it run, so Envoy may have given them up.
    """
    await until(session_stack.is_healthy)
    return session_stack


class Builder:
    """Makes gateways of a test's own."""

    settings_for = staticmethod(settings_for)
    running_stack = staticmethod(running_stack)
    process = staticmethod(process)
    until = staticmethod(until)
    envoy = staticmethod(envoy)
    backend = staticmethod(backend)


@pytest.fixture
def build() -> Builder:
    """What to make a gateway of the test's own with."""
    return Builder()


@pytest.fixture
def own_directory() -> Iterator[Path]:
    """A short directory for a gateway of the test's own."""
    with short_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def module_directory() -> Iterator[Path]:
    """A short directory for a gateway of the module's own."""
    with short_directory() as directory:
        yield directory


@pytest.fixture(scope="session", autouse=True)
def _no_proxy() -> None:
    os.environ.setdefault("no_proxy", "127.0.0.1")
