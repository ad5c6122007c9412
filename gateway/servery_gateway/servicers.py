"""The services of servery.gateway.v1: parse, call, render."""

# ruff: noqa: N802 methods are called as in the contract

from __future__ import annotations  # grpc's generics exist only in its stubs.

from typing import Any

import grpc

from servery.gateway.v1 import gateway_pb2 as pb
from servery.gateway.v1 import gateway_pb2_grpc as pb_grpc
from servery_gateway.keyring import Keyring
from servery_gateway.keys import Permission
from servery_gateway.render import (
    expire_time_from_proto,
    key_to_proto,
    permissions_from_proto,
    permissions_to_proto,
    tenant_to_proto,
    valid_for_from_proto,
)
from servery_gateway.tenants import parse_display_name
from servery_gateway.tokens import parse_valid_for
from servery_rpc.identity import caller_of
from servery_rpc.names import DEFAULT_TENANT, ApiKeyName, TenantName
from servery_rpc.pages import page_token, parse_page

Context = grpc.aio.ServicerContext


class AuthServicer(pb_grpc.AuthServiceServicer):
    """Exchanges keys for tokens."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    async def ExchangeApiKey(
        self, request: pb.ExchangeApiKeyRequest, context: Context[Any, Any]
    ) -> pb.ExchangeApiKeyResponse:
        """See gateway.proto."""
        wanted: tuple[Permission, ...] = ()
        if request.permissions:
            wanted = permissions_from_proto(request.permissions, "permissions")
        valid_for = parse_valid_for(valid_for_from_proto(request, "valid_for"), "valid_for")
        key, token = await self._keyring.exchange(request.api_key, wanted, valid_for)
        response = pb.ExchangeApiKeyResponse(
            access_token=token.text,
            tenant=f"tenants/{key.name.tenant}",
            permissions=permissions_to_proto(token.permissions),
        )
        response.valid_for.FromTimedelta(token.valid_for)
        return response


class TenantServicer(pb_grpc.TenantServiceServicer):
    """Manages tenants."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    async def CreateTenant(
        self, request: pb.CreateTenantRequest, context: Context[Any, Any]
    ) -> pb.CreateTenantResponse:
        """See gateway.proto."""
        caller_of(context).require("admin", DEFAULT_TENANT)
        tenant = await self._keyring.create_tenant(
            TenantName.parse(request.tenant.name, "tenant.name"),
            parse_display_name(request.tenant.display_name, "tenant.display_name"),
        )
        return pb.CreateTenantResponse(tenant=tenant_to_proto(tenant))

    async def GetTenant(
        self, request: pb.GetTenantRequest, context: Context[Any, Any]
    ) -> pb.GetTenantResponse:
        """See gateway.proto."""
        caller_of(context).require("admin", DEFAULT_TENANT)
        tenant = await self._keyring.tenant(TenantName.parse(request.name))
        return pb.GetTenantResponse(tenant=tenant_to_proto(tenant))

    async def ListTenants(
        self, request: pb.ListTenantsRequest, context: Context[Any, Any]
    ) -> pb.ListTenantsResponse:
        """See gateway.proto."""
        caller_of(context).require("admin", DEFAULT_TENANT)
        page = parse_page(request.page_size, request.page_token, "tenants")
        tenants = await self._keyring.tenants(page.size + 1, page.after)
        more = len(tenants) > page.size
        tenants = tenants[: page.size]
        return pb.ListTenantsResponse(
            tenants=[tenant_to_proto(tenant) for tenant in tenants],
            next_page_token=page_token("tenants", tenants[-1].name.tenant) if more else "",
        )


class ApiKeyServicer(pb_grpc.ApiKeyServiceServicer):
    """Manages the keys of a tenant."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    async def CreateApiKey(
        self, request: pb.CreateApiKeyRequest, context: Context[Any, Any]
    ) -> pb.CreateApiKeyResponse:
        """See gateway.proto."""
        tenant = TenantName.parse(request.parent, "parent")
        caller_of(context).require("admin", tenant.tenant)
        key, secret = await self._keyring.create_key(
            tenant,
            parse_display_name(request.api_key.display_name, "api_key.display_name"),
            permissions_from_proto(request.api_key.permissions, "api_key.permissions"),
            expire_time_from_proto(request.api_key, "api_key.expire_time"),
        )
        return pb.CreateApiKeyResponse(api_key=key_to_proto(key), secret=secret)

    async def ListApiKeys(
        self, request: pb.ListApiKeysRequest, context: Context[Any, Any]
    ) -> pb.ListApiKeysResponse:
        """See gateway.proto."""
        tenant = TenantName.parse(request.parent, "parent")
        caller_of(context).require("admin", tenant.tenant)
        listing = f"{tenant}/apiKeys"
        page = parse_page(request.page_size, request.page_token, listing)
        after = ApiKeyName(tenant.tenant, page.after) if page.after else None
        keys = await self._keyring.keys(tenant, page.size + 1, after)
        more = len(keys) > page.size
        keys = keys[: page.size]
        return pb.ListApiKeysResponse(
            api_keys=[key_to_proto(key) for key in keys],
            next_page_token=page_token(listing, keys[-1].name.key) if more else "",
        )

    async def RevokeApiKey(
        self, request: pb.RevokeApiKeyRequest, context: Context[Any, Any]
    ) -> pb.RevokeApiKeyResponse:
        """See gateway.proto."""
        name = ApiKeyName.parse(request.name)
        caller_of(context).require("admin", name.tenant)
        key = await self._keyring.revoke_key(name)
        return pb.RevokeApiKeyResponse(api_key=key_to_proto(key))
