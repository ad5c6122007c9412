"""The services of servery.gateway.v1, by the names of the contracts."""

from servery.gateway.v1 import (
    billing_pb2_grpc,
    gateway_pb2_grpc,
    identity_pb2_grpc,
    quota_pb2_grpc,
    route_pb2_grpc,
    usage_pb2_grpc,
)
from servery_gateway.billing_servicer import BillingServicer
from servery_gateway.identity_servicer import IdentityServicer
from servery_gateway.quota_servicer import QuotaServicer
from servery_gateway.route_servicer import RouteServicer
from servery_gateway.servicers import ApiKeyServicer, AuthServicer, TenantServicer
from servery_gateway.usage_servicer import UsageServicer
from servery_rpc.server import Service

_PACKAGE = "servery.gateway.v1"


def public_services(
    *,
    auth: AuthServicer,
    tenants: TenantServicer,
    keys: ApiKeyServicer,
    identities: IdentityServicer,
    usage: UsageServicer,
    quotas: QuotaServicer,
    routes: RouteServicer,
    billing: BillingServicer,
) -> tuple[Service, ...]:
    """Return what the control plane serves to callers, through Envoy."""
    return (
        Service(
            f"{_PACKAGE}.AuthService",
            lambda server: gateway_pb2_grpc.add_AuthServiceServicer_to_server(auth, server),
        ),
        Service(
            f"{_PACKAGE}.TenantService",
            lambda server: gateway_pb2_grpc.add_TenantServiceServicer_to_server(tenants, server),
        ),
        Service(
            f"{_PACKAGE}.ApiKeyService",
            lambda server: gateway_pb2_grpc.add_ApiKeyServiceServicer_to_server(keys, server),
        ),
        Service(
            f"{_PACKAGE}.IdentityService",
            lambda server: identity_pb2_grpc.add_IdentityServiceServicer_to_server(
                identities, server
            ),
        ),
        Service(
            f"{_PACKAGE}.UsageService",
            lambda server: usage_pb2_grpc.add_UsageServiceServicer_to_server(usage, server),
        ),
        Service(
            f"{_PACKAGE}.QuotaService",
            lambda server: quota_pb2_grpc.add_QuotaServiceServicer_to_server(quotas, server),
        ),
        Service(
            f"{_PACKAGE}.RouteService",
            lambda server: route_pb2_grpc.add_RouteServiceServicer_to_server(routes, server),
        ),
        Service(
            f"{_PACKAGE}.BillingService",
            lambda server: billing_pb2_grpc.add_BillingServiceServicer_to_server(billing, server),
        ),
    )
