"""One channel to a Servery gateway, and the token every call on it needs."""

import base64
import binascii
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import grpc

from servery.errors import ApiError
from servery.gateway.v1 import gateway_pb2, gateway_pb2_grpc

R = TypeVar("R")

_SERVICE_CONFIG: Final = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.3s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
"""UNAVAILABLE means that the call did not run, or can run again: nothing else is retried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who calls, shown by an API key, a token, or a certificate."""

    api_key: str | None = None
    """The secret, `sk-…`; exchanged for tokens as they expire."""

    token: str | None = None
    """A token of Servery or of the company's issuer, sent as it is."""

    certificate_chain: bytes | None = None
    """PEM, shown to the server; its key is `private_key`."""

    private_key: bytes | None = None

    tenant: str | None = None
    """`tenants/{tenant}`. None: that of the key or the token, else `tenants/default`."""


class Connection:
    """A channel, opened when first used.

    Safe to use from several threads. Every method raises `ApiError` for a call that failed.

    Args:
        address: `host:port` of the gateway.
        identity: Who calls.
        root_certificates: PEM bytes that the server's certificate is checked against; turns TLS on.
        timeout_s: How long one call may take.
    """

    def __init__(
        self, address: str, identity: Identity, root_certificates: bytes | None, timeout_s: float
    ) -> None:
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.service_config", _SERVICE_CONFIG),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        if root_certificates is not None:
            credentials = grpc.ssl_channel_credentials(
                root_certificates, identity.private_key, identity.certificate_chain
            )
            self.channel = grpc.secure_channel(address, credentials, options)
        else:
            self.channel = grpc.insecure_channel(address, options)
        self.timeout_s = timeout_s
        self._identity = identity
        self._auth = gateway_pb2_grpc.AuthServiceStub(self.channel)
        self._lock = threading.Lock()
        self._token: gateway_pb2.ExchangeApiKeyResponse | None = None
        self._renew_at = 0.0

    def close(self) -> None:
        """Close the channel; running calls are cancelled."""
        self.channel.close()

    @property
    def tenant(self) -> str:
        """Resource name of the caller's tenant, `tenants/{tenant}`."""
        if self._identity.tenant is not None:
            return self._identity.tenant
        if self._identity.token is not None:
            return _tenant_of(self._identity.token)
        token = self._exchanged()
        return token.tenant if token else "tenants/default"

    def exchange(
        self, permissions: Sequence[gateway_pb2.Permission], valid_for: timedelta | None
    ) -> gateway_pb2.ExchangeApiKeyResponse:
        """Return a token that permits less than the key, or for less long.

        Raises:
            ValueError: The connection has no key.
        """
        if self._identity.api_key is None:
            raise ValueError("only an API key can be exchanged for a token")
        request = gateway_pb2.ExchangeApiKeyRequest(
            api_key=self._identity.api_key, permissions=permissions
        )
        if valid_for is not None:
            request.valid_for.FromTimedelta(valid_for)
        try:
            return self._auth.ExchangeApiKey(request, timeout=self.timeout_s)
        except grpc.RpcError as error:
            raise ApiError.of(error) from None

    def unary(self, method: Callable[..., R], request: Any, *, timeout_s: float | None = None) -> R:
        """Call a method that answers once; `request` is a message or an iterable of messages."""
        try:
            return method(
                request, timeout=timeout_s or self.timeout_s, metadata=self._credentials()
            )
        except grpc.RpcError as error:
            raise ApiError.of(error) from None

    def stream(self, method: Callable[..., Iterable[R]], request: Any) -> Iterator[R]:
        """Call a method that answers with a stream; no deadline, closing the iterator cancels."""
        responses: Any = method(request, metadata=self._credentials())
        try:
            yield from responses
        except grpc.RpcError as error:
            raise ApiError.of(error) from None
        finally:
            responses.cancel()

    def _credentials(self) -> list[tuple[str, str]]:
        if self._identity.token is not None:
            return [("authorization", f"Bearer {self._identity.token}")]
        token = self._exchanged()
        return [("authorization", f"Bearer {token.access_token}")] if token else []

    def _exchanged(self) -> gateway_pb2.ExchangeApiKeyResponse | None:
        """Return a token with at least a fifth of its life left; None without a key."""
        if self._identity.api_key is None:
            return None
        with self._lock:
            now = time.monotonic()
            if self._token is None or now >= self._renew_at:
                self._token = self.exchange((), None)
                self._renew_at = now + 0.8 * self._token.valid_for.seconds
            return self._token


def _tenant_of(token: str) -> str:
    """The tenant that a token of Servery names; that of another one is the gateway's to say."""
    payload = token.split(".")[1:2] or [""]
    try:
        claims = json.loads(base64.urlsafe_b64decode(payload[0] + "=="))
    except (binascii.Error, ValueError):
        claims = {}
    return f"tenants/{claims.get('tenant', 'default')}"
