"""Tenants: the owners of models, data and keys. For administrators of `tenants/default`."""

from collections.abc import Iterator

from servery.connection import Connection
from servery.gateway.v1 import gateway_pb2 as pb
from servery.gateway.v1 import gateway_pb2_grpc as pb_grpc


def tenant_name(tenant: str) -> str:
    """Return the resource name of a tenant, given that or its id."""
    return tenant if "/" in tenant else f"tenants/{tenant}"


class Tenants:
    """The tenants of the platform."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = pb_grpc.TenantServiceStub(connection.channel)

    def create(self, tenant: str, *, display_name: str = "") -> pb.Tenant:
        """Create a tenant, by id or resource name."""
        request = pb.CreateTenantRequest(
            tenant=pb.Tenant(name=tenant_name(tenant), display_name=display_name)
        )
        return self._connection.unary(self._stub.CreateTenant, request).tenant

    def list(self) -> Iterator[pb.Tenant]:
        """Yield every tenant, by name."""
        request = pb.ListTenantsRequest()
        while True:
            page = self._connection.unary(self._stub.ListTenants, request)
            yield from page.tenants
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
