"""The control plane of the gateway, from its settings to a server that answers."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

from sqlalchemy import Engine

from servery.inference.pool import pool as inference_pool
from servery_gateway import xds_pool
from servery_gateway.access_log import AccessLog
from servery_gateway.ads import AdsServer
from servery_gateway.audit import AuditLog, audited
from servery_gateway.background import background
from servery_gateway.billing import Billing
from servery_gateway.billing_servicer import BillingServicer
from servery_gateway.billing_store import BillingStore
from servery_gateway.cluster_watch import ClusterWatch
from servery_gateway.configuration_files import ConfigurationFiles
from servery_gateway.credentials import renew_credentials
from servery_gateway.data_plane import DataPlane
from servery_gateway.identity_servicer import IdentityServicer
from servery_gateway.issuers import IssuerKeys
from servery_gateway.keyring import Keyring, utc_now
from servery_gateway.meter import Meter, metering
from servery_gateway.methods import methods
from servery_gateway.model_routes import DEFAULT_POOL
from servery_gateway.operator_files import OperatorFiles
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
from servery_gateway.state import StateReader
from servery_gateway.store import Store
from servery_gateway.usage_servicer import UsageServicer
from servery_gateway.usage_store import UsageStore
from servery_rpc.database import open_database
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
    operator_files = await asyncio.to_thread(OperatorFiles, settings)
    store = Store(engine)
    usage = UsageStore(engine)
    issuers = IssuerKeys(lambda: operator_files.identities.issuers)
    state = StateReader(settings, engine, keys, operator_files, issuers, now)
    ads = AdsServer()
    files = await asyncio.to_thread(ConfigurationFiles, settings.data_dir / "configuration")
    data_plane = DataPlane(ads, files, state.read)
    clusters = ClusterWatch(monotonic)
    pools = (DEFAULT_POOL, *settings.pools)
    routing = Routing(store, RouteStore(engine), pools, data_plane.refresh, clusters)
    quotas = Quotas(store, QuotaStore(engine), data_plane.refresh, now)
    revocations = Revocations(store, RevocationStore(engine), data_plane.refresh, now)
    billing = Billing(store, BillingStore(engine), data_plane.refresh, now)
    keyring = Keyring(
        store=store, pepper=pepper, signing_key=keys.current, deny=data_plane.refresh, now=now
    )

    async def take_up() -> None:
        await keyring.ensure_tenants([DEFAULT_TENANT, *operator_files.identities.tenants])
        await data_plane.refresh()
        issuers.ask()

    await take_up()
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
            background(renew_credentials(keys, operator_files, take_up, now)),
            serving(
                settings,
                *services,
                pools=[xds_pool.pool(), inference_pool()],
                described=sorted({method.service for method in methods()}),
            ) as running,
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


def _open_data(settings: GatewaySettings, now: datetime) -> tuple[Engine, bytes, SigningKeys]:
    make_private_directory(settings.data_dir)
    pepper = load_or_create(settings.data_dir / "key-pepper", lambda: secrets.token_bytes(32))
    keys = SigningKeys(settings.data_dir, timedelta(days=settings.signing_key_days), now)
    where = settings.database_url or settings.data_dir / "gateway.db"
    return open_database(where, "servery_gateway"), pepper, keys
