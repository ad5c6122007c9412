"""The control plane of the gateway, from its settings to a server that answers."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

from sqlalchemy import Engine

from servery_gateway import xds_pool
from servery_gateway.access_log import AccessLog
from servery_gateway.ads import AdsServer
from servery_gateway.audit import AuditLog, audited
from servery_gateway.billing import Billing
from servery_gateway.billing_servicer import BillingServicer
from servery_gateway.billing_store import BillingStore
from servery_gateway.budget import month_of
from servery_gateway.callers import Callers
from servery_gateway.certificate import CertificateFiles
from servery_gateway.cluster_watch import ClusterWatch
from servery_gateway.configuration_files import ConfigurationFiles
from servery_gateway.credentials import renew_credentials
from servery_gateway.data_plane import DataPlane
from servery_gateway.database import open_postgresql, open_sqlite
from servery_gateway.identities import Identities, read
from servery_gateway.identity_servicer import IdentityServicer
from servery_gateway.issuers import IssuerKeys
from servery_gateway.keyring import DENIED_FOR, Keyring, utc_now
from servery_gateway.limits import BUDGET_POLICY, REVOKED_POLICY, SPENT_POLICY, Rates
from servery_gateway.meter import Meter, metering
from servery_gateway.methods import GATEWAY, INFERENCE, INFERENCE_HTTP, REGISTRY, TRAINER
from servery_gateway.model_routes import DEFAULT_POOL, ModelRoute
from servery_gateway.quota_servicer import QuotaServicer
from servery_gateway.quota_store import QuotaStore
from servery_gateway.quotas import Quotas
from servery_gateway.revocation_store import RevocationStore
from servery_gateway.revocations import Revocations
from servery_gateway.route_servicer import RouteServicer
from servery_gateway.route_store import RouteStore
from servery_gateway.routing import Routing
from servery_gateway.secret_files import load_or_create, make_private_directory
from servery_gateway.servicers import ApiKeyServicer, AuthServicer, TenantServicer
from servery_gateway.services import public_services
from servery_gateway.settings import GatewaySettings
from servery_gateway.signing_keys import SigningKeys
from servery_gateway.store import Store
from servery_gateway.translation import GatewayState
from servery_gateway.usage import day_of
from servery_gateway.usage_servicer import UsageServicer
from servery_gateway.usage_store import UsageStore
from servery_rpc.names import DEFAULT_TENANT
from servery_rpc.server import RunningServer, serving

log = logging.getLogger(__name__)


@asynccontextmanager
async def control_plane(
    settings: GatewaySettings, now: Callable[[], datetime] = utc_now
) -> AsyncIterator[RunningServer]:
    """Serve tenants, keys, tokens and the configuration of Envoy inside the block.

    Raises:
        OSError: A file of `settings` cannot be read or written.
        RuntimeError: A file holds not what it must, or `settings.listen` cannot be bound.
    """
    engine, pepper, keys = await asyncio.to_thread(_open_data, settings, now())
    certificate = await asyncio.to_thread(_certificate, settings)
    store = Store(engine)

    usage = UsageStore(engine)
    quota_store = QuotaStore(engine)
    billing_store = BillingStore(engine)
    routes = RouteStore(engine)
    revoked_identities = RevocationStore(engine)
    pools = (DEFAULT_POOL, *settings.pools)
    fixed = await asyncio.to_thread(_state, settings)
    issuers = IssuerKeys(fixed.callers.identities.issuers)

    def state() -> GatewayState:
        time = now()
        revoked = store.keys_revoked_since(time - DENIED_FOR)
        limited = quota_store.limited()
        return replace(
            fixed,
            certificate=certificate.certificate if certificate else None,
            jwks=keys.jwks,
            issuer_jwks=issuers.jwks,
            callers=replace(
                fixed.callers,
                revoked=revoked_identities.all(),
                in_flight={
                    owner: quota.requests_in_flight
                    for owner, quota in limited.items()
                    if quota.requests_in_flight
                },
            ),
            models=tuple(r for r in routes.list() if _uses_only(r, pools)),
            refused={
                REVOKED_POLICY: frozenset(str(name) for name in revoked),
                SPENT_POLICY: quota_store.spent(day_of(time)),
                BUDGET_POLICY: billing_store.stopped(month_of(time)),
            },
            rates=replace(
                fixed.rates,
                owners={
                    owner: quota.requests_per_second
                    for owner, quota in limited.items()
                    if quota.requests_per_second
                },
            ),
        )

    ads = AdsServer()
    files = await asyncio.to_thread(ConfigurationFiles, settings.data_dir / "configuration")
    data_plane = DataPlane(ads, files, state)
    clusters = ClusterWatch(monotonic)
    routing = Routing(store, routes, pools, data_plane.refresh, clusters)
    quotas = Quotas(store, quota_store, data_plane.refresh, now)
    revocations = Revocations(store, revoked_identities, data_plane.refresh, now)
    billing = Billing(store, billing_store, data_plane.refresh, now)
    keyring = Keyring(
        store=store, pepper=pepper, signing_key=keys.current, deny=data_plane.refresh, now=now
    )
    await keyring.ensure_tenants([DEFAULT_TENANT, *fixed.callers.identities.tenants])
    await data_plane.refresh()
    meter = Meter(usage, now)
    access_log = AccessLog(meter.record)
    audit_log = await asyncio.to_thread(AuditLog, settings.data_dir / "audit.jsonl")

    def audit(servicer: Any) -> Any:
        return audited(servicer, audit_log, now)

    services = (
        *public_services(
            auth=AuthServicer(keyring),
            tenants=audit(TenantServicer(keyring)),
            keys=audit(ApiKeyServicer(keyring)),
            identities=audit(IdentityServicer(revocations)),
            usage=UsageServicer(store, usage),
            quotas=audit(QuotaServicer(quotas)),
            routes=audit(RouteServicer(routing)),
            billing=audit(BillingServicer(billing)),
        ),
        ads.service,
        access_log.service,
        clusters.service,
    )
    try:
        async with (
            metering(meter),
            background(quotas.follow()),
            background(billing.follow()),
            background(issuers.follow(data_plane.refresh)),
            background(renew_credentials(keys, certificate, data_plane.refresh, now)),
            serving(settings, *services, pools=[xds_pool.pool()]) as running,
        ):
            log.info("control plane on %s", running.address)
            try:
                yield running
            finally:
                ads.close()
                await access_log.close()
    finally:
        await asyncio.to_thread(files.close)
        audit_log.close()
        engine.dispose()


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do `work` inside the block; cancel it when it is left."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _open_data(settings: GatewaySettings, now: datetime) -> tuple[Engine, bytes, SigningKeys]:
    make_private_directory(settings.data_dir)
    pepper = load_or_create(settings.data_dir / "key-pepper", lambda: secrets.token_bytes(32))
    keys = SigningKeys(settings.data_dir, timedelta(days=settings.signing_key_days), now)
    url = settings.database_url
    engine = open_postgresql(url) if url else open_sqlite(settings.data_dir / "gateway.db")
    return engine, pepper, keys


def _uses_only(route: ModelRoute, pools: Sequence[str]) -> bool:
    """Tell whether a route fits these settings; one that does not waits for its pools."""
    return set(route.all_pools) <= set(pools)


def _certificate(settings: GatewaySettings) -> CertificateFiles | None:
    chain, key = settings.public_tls_certificate, settings.public_tls_key
    return None if chain is None or key is None else CertificateFiles(chain, key)


def _state(settings: GatewaySettings) -> GatewayState:
    ca = settings.public_client_ca
    return GatewayState(
        client_ca=ca.read_text("utf-8") if ca else None,
        callers=Callers(
            identities=read(settings.identities) if settings.identities else Identities()
        ),
        public=settings.public_address,
        certificate=None,
        upstreams={
            INFERENCE: (settings.upstream("inference"),),
            REGISTRY: (settings.upstream("registry"),),
            TRAINER: (settings.upstream("trainer"),),
            GATEWAY: (settings.upstream("listen"),),
            **(
                {INFERENCE_HTTP: (settings.upstream("inference_http"),)}
                if settings.inference_http
                else {}
            ),
        },
        pools=settings.pools,
        http_pools=settings.http_pools,
        models=(),
        origins=settings.browser_origins,
        jwks=(),
        refused={},
        rates=Rates(
            exchanges_per_minute=settings.key_exchanges_per_minute,
            tenant_per_second=settings.tenant_requests_per_second,
            owners={},
        ),
    )
