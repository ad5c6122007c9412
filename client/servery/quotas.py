"""Quotas: how much a tenant, a key or an identity may call."""

from servery.connection import Connection
from servery.gateway.v1 import quota_pb2 as pb
from servery.gateway.v1 import quota_pb2_grpc as pb_grpc


class Quotas:
    """The quotas of tenants, keys and identities, which are resource names here."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = pb_grpc.QuotaServiceStub(connection.channel)

    def set(self, quota: pb.Quota) -> pb.Quota:
        """Replace the quota of `quota.name`; it is in force when this returns."""
        request = pb.SetQuotaRequest(quota=quota)
        return self._connection.unary(self._stub.SetQuota, request).quota

    def get(self, owner: str) -> pb.GetQuotaResponse:
        """Return the quota of an owner, and what is used of it today."""
        return self._connection.unary(self._stub.GetQuota, pb.GetQuotaRequest(name=owner))
