"""servery.gateway.v1.QuotaService: parse, call, render."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

from dataclasses import asdict
from typing import Any

import grpc

from servery.gateway.v1 import quota_pb2 as pb
from servery.gateway.v1 import quota_pb2_grpc as pb_grpc
from servery_gateway.quota import LIMITS, Owner, Quota, parse_owner, parse_quota
from servery_gateway.quotas import Quotas
from servery_rpc.identity import caller_of
from servery_rpc.names import DEFAULT_TENANT, TenantName

Context = grpc.aio.ServicerContext


class QuotaServicer(pb_grpc.QuotaServiceServicer):
    """Sets and tells quotas."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas

    async def SetQuota(
        self, request: pb.SetQuotaRequest, context: Context[Any, Any]
    ) -> pb.SetQuotaResponse:
        """See quota.proto."""
        owner = parse_owner(request.quota.name, "quota.name")
        # A tenant must not lift its own quota.
        of_tenant = isinstance(owner, TenantName)
        caller_of(context).require("admin", DEFAULT_TENANT if of_tenant else owner.tenant)
        quota = parse_quota(**{name: getattr(request.quota, name) for name in LIMITS})
        await self._quotas.set(owner, quota)
        return pb.SetQuotaResponse(quota=_to_proto(owner, quota))

    async def GetQuota(
        self, request: pb.GetQuotaRequest, context: Context[Any, Any]
    ) -> pb.GetQuotaResponse:
        """See quota.proto."""
        owner = parse_owner(request.name, "name")
        caller_of(context).require("admin", owner.tenant)
        quota = await self._quotas.get(owner)
        return pb.GetQuotaResponse(
            quota=_to_proto(owner, quota),
            requests_today=await self._quotas.requests_today(owner),
        )


def _to_proto(owner: Owner, quota: Quota) -> pb.Quota:
    return pb.Quota(name=str(owner), **asdict(quota))
