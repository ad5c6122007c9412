"""API keys: who may do what, and who no longer may."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from servery.connection import Connection
from servery.gateway.v1 import gateway_pb2 as pb
from servery.gateway.v1 import gateway_pb2_grpc as pb_grpc


def verb_name(verb: "pb.Verb.ValueType") -> str:
    """Return a verb as people write it, such as `infer`."""
    return pb.Verb.Name(verb).removeprefix("VERB_").lower()


class Keys:
    """The API keys of a tenant, by default the caller's."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = pb_grpc.ApiKeyServiceStub(connection.channel)

    def create(
        self,
        permissions: Mapping[str, Sequence[str]],
        *,
        display_name: str = "",
        expire_time: datetime | None = None,
        tenant: str | None = None,
    ) -> pb.CreateApiKeyResponse:
        """Create a key; its secret is in the answer and nowhere else.

        Args:
            permissions: Verb (`infer`, `read`, `train`, `publish`, `promote`, `admin`) to model
                patterns, such as `{"infer": ["digits", "fraud-*"]}`.
            display_name: For people.
            expire_time: When it stops working; None means never. With a time zone.
            tenant: Resource name; None means the caller's own.

        Raises:
            ValueError: A verb is unknown.
        """
        key = pb.ApiKey(display_name=display_name, permissions=_permissions(permissions))
        if expire_time is not None:
            key.expire_time.FromDatetime(expire_time)
        request = pb.CreateApiKeyRequest(parent=tenant or self._connection.tenant, api_key=key)
        return self._connection.unary(self._stub.CreateApiKey, request)

    def list(self, tenant: str | None = None) -> Iterator[pb.ApiKey]:
        """Yield every key, the newest first, revoked and expired ones included."""
        request = pb.ListApiKeysRequest(parent=tenant or self._connection.tenant)
        while True:
            page = self._connection.unary(self._stub.ListApiKeys, request)
            yield from page.api_keys
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def token(
        self,
        permissions: Mapping[str, Sequence[str]] | None = None,
        valid_for: timedelta | None = None,
    ) -> pb.ExchangeApiKeyResponse:
        """Exchange the caller's key for a token to hand on.

        Args:
            permissions: As for `create`, no more than the key has; None means all that it has.
            valid_for: At most 10 minutes, which None means.

        Raises:
            ValueError: A verb is unknown, or the caller has no key.
        """
        return self._connection.exchange(_permissions(permissions or {}), valid_for)

    def revoke(self, key: str) -> pb.ApiKey:
        """Revoke a key for ever, by id or resource name; its live tokens end with it."""
        name = key if "/" in key else f"{self._connection.tenant}/apiKeys/{key}"
        request = pb.RevokeApiKeyRequest(name=name)
        return self._connection.unary(self._stub.RevokeApiKey, request).api_key


def _permissions(permissions: Mapping[str, Sequence[str]]) -> Sequence[pb.Permission]:
    return [pb.Permission(verb=_verb(verb), models=models) for verb, models in permissions.items()]


def _verb(name: str) -> "pb.Verb.ValueType":
    try:
        return pb.Verb.Value(f"VERB_{name.upper()}")
    except ValueError:
        known = ", ".join(verb_name(verb) for verb in pb.Verb.values() if verb)
        raise ValueError(f"{name!r} is not a verb; use one of {known}") from None
