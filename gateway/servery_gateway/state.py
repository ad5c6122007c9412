"""What the gateway knows, put together for the translation."""

from collections.abc import Callable, Mapping
from datetime import datetime

from sqlalchemy import Engine

from servery_gateway.address import Address
from servery_gateway.billing_store import BillingStore
from servery_gateway.budget import month_of
from servery_gateway.callers import Callers
from servery_gateway.issuers import IssuerKeys
from servery_gateway.keyring import DENIED_FOR
from servery_gateway.limits import BUDGET_POLICY, REVOKED_POLICY, SPENT_POLICY, Rates
from servery_gateway.methods import GATEWAY, INFERENCE, INFERENCE_HTTP, REGISTRY, TRAINER
from servery_gateway.model_routes import DEFAULT_POOL
from servery_gateway.operator_files import OperatorFiles
from servery_gateway.quota_store import QuotaStore
from servery_gateway.revocation_store import RevocationStore
from servery_gateway.route_store import RouteStore
from servery_gateway.settings import GatewaySettings
from servery_gateway.signing_keys import SigningKeys
from servery_gateway.store import Store
from servery_gateway.translation import GatewayState
from servery_gateway.usage import day_of


class StateReader:
    """Reads all of it. Safe to use from many threads; `read` blocks.

    Args:
        settings: What the control plane was told.
        engine: Of the database.
        keys: What tokens are signed with.
        files: What the operator's files say.
        issuers: The keys of who else signs tokens.
        now: Returns the time.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        engine: Engine,
        keys: SigningKeys,
        files: OperatorFiles,
        issuers: IssuerKeys,
        now: Callable[[], datetime],
    ) -> None:
        self._settings = settings
        self._store = Store(engine)
        self._quotas = QuotaStore(engine)
        self._billing = BillingStore(engine)
        self._routes = RouteStore(engine)
        self._revocations = RevocationStore(engine)
        self._keys = keys
        self._files = files
        self._issuers = issuers
        self._now = now

    def read(self) -> GatewayState:
        """Return what is known now."""
        settings, time = self._settings, self._now()
        limited = self._quotas.limited()
        pools = {DEFAULT_POOL, *settings.pools}
        return GatewayState(
            public=settings.public_address,
            certificate=self._files.certificate,
            client_ca=self._files.client_ca,
            upstreams=_upstreams(settings),
            pools=settings.pools,
            http_pools=settings.http_pools,
            # A route that does not fit these settings waits for its pools.
            models=tuple(r for r in self._routes.list() if pools.issuperset(r.all_pools)),
            origins=settings.browser_origins,
            jwks=self._keys.jwks,
            issuer_jwks=self._issuers.jwks,
            callers=Callers(
                identities=self._files.identities,
                revoked=self._revocations.all(),
                in_flight={
                    owner: quota.requests_in_flight
                    for owner, quota in limited.items()
                    if quota.requests_in_flight
                },
            ),
            refused={
                REVOKED_POLICY: frozenset(
                    str(name) for name in self._store.keys_revoked_since(time - DENIED_FOR)
                ),
                SPENT_POLICY: self._quotas.spent(day_of(time)),
                BUDGET_POLICY: self._billing.stopped(month_of(time)),
            },
            rates=Rates(
                exchanges_per_minute=settings.key_exchanges_per_minute,
                tenant_per_second=settings.tenant_requests_per_second,
                owners={
                    owner: quota.requests_per_second
                    for owner, quota in limited.items()
                    if quota.requests_per_second
                },
            ),
        )


def _upstreams(settings: GatewaySettings) -> Mapping[str, tuple[Address, ...]]:
    doors = {INFERENCE_HTTP: "inference_http"} if settings.inference_http else {}
    names = {
        INFERENCE: "inference",
        REGISTRY: "registry",
        TRAINER: "trainer",
        GATEWAY: "listen",
        **doors,
    }
    return {upstream: (settings.upstream(name),) for upstream, name in names.items()}
