"""servery.gateway.v1.IdentityService: parse, call, render."""

from __future__ import annotations  # grpc's generics exist only in its stubs.

from typing import Any

import grpc

from servery.gateway.v1 import identity_pb2 as pb
from servery.gateway.v1 import identity_pb2_grpc as pb_grpc
from servery_gateway.revocation_store import RevokedIdentity
from servery_gateway.revocations import Revocations
from servery_rpc.identity import caller_of
from servery_rpc.names import IdentityName, TenantName
from servery_rpc.pages import page_token, parse_page

Context = grpc.aio.ServicerContext


class IdentityServicer(pb_grpc.IdentityServiceServicer):
    """Revokes, restores and lists identities."""

    def __init__(self, revocations: Revocations) -> None:
        self._revocations = revocations

    async def RevokeIdentity(
        self, request: pb.RevokeIdentityRequest, context: Context[Any, Any]
    ) -> pb.RevokeIdentityResponse:
        """See identity.proto."""
        name = IdentityName.parse(request.name)
        caller_of(context).require("admin", name.tenant)
        return pb.RevokeIdentityResponse(identity=_to_proto(await self._revocations.revoke(name)))

    async def RestoreIdentity(
        self, request: pb.RestoreIdentityRequest, context: Context[Any, Any]
    ) -> pb.RestoreIdentityResponse:
        """See identity.proto."""
        name = IdentityName.parse(request.name)
        caller_of(context).require("admin", name.tenant)
        await self._revocations.restore(name)
        return pb.RestoreIdentityResponse()

    async def ListRevokedIdentities(
        self, request: pb.ListRevokedIdentitiesRequest, context: Context[Any, Any]
    ) -> pb.ListRevokedIdentitiesResponse:
        """See identity.proto."""
        tenant = TenantName.parse(request.parent, "parent")
        caller_of(context).require("admin", tenant.tenant)
        listing = f"{tenant}/revokedIdentities"
        page = parse_page(request.page_size, request.page_token, listing)
        after = IdentityName(tenant.tenant, page.after) if page.after else None
        revoked = await self._revocations.list(tenant, page.size + 1, after)
        more = len(revoked) > page.size
        revoked = revoked[: page.size]
        return pb.ListRevokedIdentitiesResponse(
            identities=[_to_proto(one) for one in revoked],
            next_page_token=page_token(listing, revoked[-1].name.identity) if more else "",
        )


def _to_proto(revoked: RevokedIdentity) -> pb.RevokedIdentity:
    identity = pb.RevokedIdentity(name=str(revoked.name))
    identity.revoke_time.FromDatetime(revoked.revoke_time)
    return identity
