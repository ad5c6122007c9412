"""One channel to a Servery gateway, and the token every call on it needs."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
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


class Connection:
    """A channel, opened when first used, with an API key exchanged for tokens as they expire.

    Safe to use from several threads. Every method raises `ApiError` for a call that failed.
    """

    def __init__(
        self, address: str, api_key: str | None, root_certificates: bytes | None, timeout_s: float
    ) -> None:
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.service_config", _SERVICE_CONFIG),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        if root_certificates is not None:
            credentials = grpc.ssl_channel_credentials(root_certificates)
            self.channel = grpc.secure_channel(address, credentials, options)
        else:
            self.channel = grpc.insecure_channel(address, options)
        self.timeout_s = timeout_s
        self._api_key = api_key
        self._auth = gateway_pb2_grpc.AuthServiceStub(self.channel)
        self._lock = threading.Lock()
        self._token: gateway_pb2.ExchangeApiKeyResponse | None = None
        self._renew_at = 0.0

    def close(self) -> None:
        """Close the channel; running calls are cancelled."""
        self.channel.close()

    @property
    def tenant(self) -> str:
        """Resource name of the tenant the key belongs to, `tenants/{tenant}`."""
        token = self._exchanged()
        return token.tenant if token else "tenants/default"

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
        token = self._exchanged()
        return [("authorization", f"Bearer {token.access_token}")] if token else []

    def _exchanged(self) -> gateway_pb2.ExchangeApiKeyResponse | None:
        """Return a token with at least a fifth of its life left; None without a key."""
        if self._api_key is None:
            return None
        with self._lock:
            now = time.monotonic()
            if self._token is None or now >= self._renew_at:
                request = gateway_pb2.ExchangeApiKeyRequest(api_key=self._api_key)
                try:
                    self._token = self._auth.ExchangeApiKey(request, timeout=self.timeout_s)
                except grpc.RpcError as error:
                    raise ApiError.of(error) from None
                self._renew_at = now + 0.8 * self._token.valid_for.seconds
            return self._token
