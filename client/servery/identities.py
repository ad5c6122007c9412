"""Identities: people and programs without an API key, whom the company vouches for."""

from collections.abc import Iterator
from urllib.parse import quote

from servery.connection import Connection
from servery.gateway.v1 import identity_pb2 as pb
from servery.gateway.v1 import identity_pb2_grpc as pb_grpc


def identity_name(identity: str, tenant: str) -> str:
    """Return the resource name of an identity.

    Args:
        identity: That, `{issuer}:{subject}`, or the SPIFFE id of a certificate.
        tenant: Resource name of the tenant, for who is not given as a resource name.
    """
    if identity.startswith("tenants/"):
        return identity
    return f"{tenant}/identities/{quote(identity, safe='@:')}"


class Identities:
    """Whom the gateway refuses, whatever the company says. Identities as `identity_name` has it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = pb_grpc.IdentityServiceStub(connection.channel)

    def revoke(self, identity: str, tenant: str | None = None) -> pb.RevokedIdentity:
        """Refuse an identity; its calls are refused when this returns.

        Args:
            identity: Who.
            tenant: Resource name; None means the caller's own.
        """
        request = pb.RevokeIdentityRequest(name=self._name(identity, tenant))
        return self._connection.unary(self._stub.RevokeIdentity, request).identity

    def restore(self, identity: str, tenant: str | None = None) -> str:
        """Refuse an identity no longer, given as for `revoke`; return its resource name."""
        request = pb.RestoreIdentityRequest(name=self._name(identity, tenant))
        self._connection.unary(self._stub.RestoreIdentity, request)
        return request.name

    def list_revoked(self, tenant: str | None = None) -> Iterator[pb.RevokedIdentity]:
        """Yield every identity of a tenant that is refused, by name; tenant as in `revoke`."""
        request = pb.ListRevokedIdentitiesRequest(parent=tenant or self._connection.tenant)
        while True:
            page = self._connection.unary(self._stub.ListRevokedIdentities, request)
            yield from page.identities
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _name(self, identity: str, tenant: str | None) -> str:
        return identity_name(identity, tenant or self._connection.tenant)
