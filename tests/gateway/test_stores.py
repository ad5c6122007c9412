"""What the gateway keeps, by one suite on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Engine, create_engine, text

import servery_gateway
from servery_gateway.billing_store import EVERYBODY, BillingStore
from servery_gateway.budget import Alert, Budget
from servery_gateway.keys import ApiKey, ApiKeyNotFoundError, Permission
from servery_gateway.model_routes import ModelRoute
from servery_gateway.pricing import Prices
from servery_gateway.quota import Quota
from servery_gateway.quota_store import QuotaStore
from servery_gateway.revocation_store import RevocationStore
from servery_gateway.route_store import RouteStore
from servery_gateway.store import Store
from servery_gateway.tenants import Tenant, TenantExistsError, TenantNotFoundError
from servery_gateway.usage import MINUTES_A_DAY, Bill, Call, Sums, parse_query
from servery_gateway.usage_store import UsageStore
from servery_rpc.database import migrate, open_database
from servery_rpc.names import ApiKeyName, IdentityName, ModelName, TenantName

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE = int(START.timestamp() // 60)
DAY = MINUTE // MINUTES_A_DAY
ACME = TenantName("acme")
KEY = ApiKeyName("acme", "0f")


@pytest.fixture
def engine(empty_database: Path | URL) -> Iterator[Engine]:
    """An empty database."""
    opened = open_database(empty_database, "servery_gateway")
    yield opened
    opened.dispose()


@pytest.fixture
def store(engine: Engine) -> Store:
    """A store with one tenant and one key."""
    made = Store(engine)
    made.add_tenant(Tenant(name=ACME, display_name="Äcme", create_time=START))
    made.add_key(key(KEY), "digest")
    return made


def key(name: ApiKeyName, created: datetime = START) -> ApiKey:
    return ApiKey(
        name=name,
        display_name="CI",
        permissions=(Permission("infer", ("fraud-*", "digits")),),
        create_time=created,
        expire_time=START + timedelta(days=1, microseconds=1),
        revoke_time=None,
    )


def call(name: bytes, **bill: Any) -> Call:
    whole = {
        "minute": MINUTE,
        "tenant": "tenants/acme",
        "api_key": str(KEY),
        "model": "tenants/acme/models/iris",
        "code": 0,
        "version": 1,
        **bill,
    }
    amounts = {"requests": 1, "request_bytes": 10, "response_bytes": 20, "duration_us": 30}
    sums = Sums(**amounts, rows=4, compute_ns=5)
    return Call(id=name, bill=Bill(**whole), reached_server=True, model_answered=True, sums=sums)


def test_tenants_are_kept_once_and_listed_by_name(store: Store) -> None:
    tenant = Tenant(name=ACME, display_name="", create_time=START)
    with pytest.raises(TenantExistsError):
        store.add_tenant(tenant)
    assert store.tenant(ACME).display_name == "Äcme"
    for name in ("b", "a"):
        store.add_tenant(Tenant(name=TenantName(name), display_name="", create_time=START))
    assert [t.name.tenant for t in store.tenants(2, None)] == ["a", "acme"]
    assert [t.name.tenant for t in store.tenants(2, "acme")] == ["b"]
    with pytest.raises(TenantNotFoundError):
        store.tenant(TenantName("nobody"))


def test_keys_are_found_by_their_digest_until_they_are_gone(store: Store) -> None:
    assert store.key_of_secret("digest") == key(KEY) == store.key(KEY)
    assert store.key_of_secret("another") is None
    with pytest.raises(ApiKeyNotFoundError):
        store.key(ApiKeyName("other", KEY.key))
    with pytest.raises(TenantNotFoundError):
        store.add_key(key(ApiKeyName("nobody", "1")), "other digest")
    later = START + timedelta(hours=1)
    assert store.revoke_key(KEY, later).revoke_time == later
    assert store.revoke_key(KEY, later + timedelta(hours=1)).revoke_time == later
    assert store.keys_revoked_since(later) == {KEY}
    assert not store.keys_revoked_since(later + timedelta(microseconds=1))


def test_keys_are_listed_the_newest_first(store: Store) -> None:
    for number in range(3):
        name = ApiKeyName("acme", f"k{number}")
        store.add_key(key(name, START + timedelta(microseconds=number)), f"digest {number}")
    page = store.keys(ACME, 2, None)
    assert [k.name.key for k in page] == ["k2", "k1"]
    assert [k.name.key for k in store.keys(ACME, 9, page[-1].name)] == ["k0", "0f"]


def test_a_call_counts_once_whatever_it_is_about(engine: Engine, store: Store) -> None:
    usage, quotas = UsageStore(engine), QuotaStore(engine)
    assert len(usage.add([call(b"1"), call(b"2"), call(b"3", version=2)], MINUTE)) == 3
    assert [c.id for c in usage.add([call(b"2"), call(b"4", code=7)], MINUTE)] == [b"4"]
    asked = parse_query(
        None, START, START + timedelta(hours=1), timedelta(minutes=30), ("version", "code")
    )
    assert [(row.group, row.sums.requests, row.sums.rows) for row in usage.query(asked, 10)] == [
        ({"version": 1, "code": 0}, 2, 8),
        ({"version": 1, "code": 7}, 1, 4),
        ({"version": 2, "code": 0}, 1, 4),
    ]
    (whole,) = usage.query(parse_query("tenants/acme", START, START + timedelta(1), None, ()), 10)
    assert whole.sums.requests == 4
    assert usage.answered_models() == {"tenants/acme/models/iris"}
    assert store.key(KEY).last_use_time == START
    assert quotas.requests_of("tenants/acme", DAY) == 4
    usage.add([call(b"5")], MINUTE + 62)
    assert len(usage.add([call(b"1")], MINUTE + 62)) == 1  # Long forgotten.


@pytest.mark.usefixtures("store")
def test_a_day_is_spent_when_all_of_it_is(engine: Engine) -> None:
    usage, quotas = UsageStore(engine), QuotaStore(engine)
    quotas.set(str(ACME), Quota(requests_per_day=2))
    quotas.set(str(KEY), Quota(requests_per_second=5, requests_in_flight=3))
    assert quotas.limited() == {str(KEY): quotas.get(str(KEY))}
    usage.add([call(b"1")], MINUTE)
    assert not quotas.spent(DAY)
    usage.add([call(b"2")], MINUTE)
    assert quotas.spent(DAY) == {"tenants/acme"}
    assert not quotas.spent(DAY + 1)
    quotas.set(str(ACME), Quota())
    assert not quotas.spent(DAY)


@pytest.mark.usefixtures("store")
def test_calls_cost_what_the_price_is_when_they_are_counted(engine: Engine) -> None:
    usage, billing = UsageStore(engine), BillingStore(engine)
    billing.set_prices(EVERYBODY, Prices(thousand_rows_nanos=1000))
    usage.add([call(b"1"), call(b"2", code=3)], MINUTE)
    billing.set_prices("tenants/acme", Prices(thousand_rows_nanos=2000))
    usage.add([call(b"3")], MINUTE)
    assert billing.prices().owner("tenants/acme") == "tenants/acme"
    assert billing.spent_nanos("tenants/acme", DAY) == 4 + 8
    assert billing.spent_nanos(str(KEY), DAY) == 4 + 8
    assert billing.spent_nanos("tenants/acme", DAY + 1) == 0


@pytest.mark.usefixtures("store")
def test_budgets_stop_at_their_amount_and_alert_once(engine: Engine) -> None:
    usage, billing = UsageStore(engine), BillingStore(engine)
    budget = Budget(amount_nanos=4, alert_percents=(50, 100), hard_stop=True)
    billing.set_budget(str(ACME), budget)
    billing.set_budget(str(KEY), Budget(amount_nanos=4))
    assert not billing.stopped(DAY)
    billing.set_prices(EVERYBODY, Prices(thousand_rows_nanos=1000))
    usage.add([call(b"1")], MINUTE)
    assert billing.budget(str(ACME)) == budget
    assert (str(ACME), budget, 4) in billing.budgets(DAY)
    assert billing.stopped(DAY) == {str(ACME)}
    alert = Alert(str(ACME), 50, START)
    assert billing.add_alert(alert, DAY)
    assert not billing.add_alert(alert, DAY)
    assert list(billing.alerts(str(ACME), DAY)) == [alert]
    assert billing.add_alert(alert, DAY + 31)


@pytest.mark.usefixtures("store")
def test_identities_are_revoked_once_and_listed_by_name(engine: Engine) -> None:
    revoked = RevocationStore(engine)
    names = [IdentityName("acme", f"company:{subject}") for subject in ("a", "b", "c")]
    later = START + timedelta(hours=1)
    for name in reversed(names):
        assert revoked.add(name, START).revoke_time == START
    assert revoked.add(names[0], later).revoke_time == START
    page = revoked.list(ACME, 2, None)
    assert [identity.name for identity in page] == names[:2]
    assert [i.name for i in revoked.list(ACME, 2, page[-1].name)] == names[2:]
    assert not revoked.list(TenantName("other"), 2, None)
    for name in (names[0], names[0]):
        revoked.remove(name)
    assert revoked.all() == {str(name) for name in names[1:]}


@pytest.mark.usefixtures("store")
def test_routes_are_replaced_and_listed_by_name(engine: Engine) -> None:
    routes = RouteStore(engine)
    for name, weight in (("b", 1), ("a", 1), ("a", 2)):
        routes.set(
            ModelRoute(model=ModelName("acme", name), pools=(("gpu", weight),), mirror_pool="")
        )
    assert [(r.model.model, r.pools) for r in routes.list()] == [
        ("a", (("gpu", 2),)),
        ("b", (("gpu", 1),)),
    ]


def test_a_schema_of_before_keeps_its_usage(tmp_path: Path) -> None:
    """Version 5 moves the sums to another table."""
    engine = create_engine(f"sqlite:///{tmp_path}/gateway.db")
    config = Config()
    config.set_main_option("script_location", str(Path(servery_gateway.__path__[0]) / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "4")
        connection.execute(
            text("INSERT INTO usage VALUES (:minute, 'tenants/acme', 'k', 'm', 0, 7, 8, 9, 10)"),
            {"minute": MINUTE},
        )
        connection.execute(
            text("INSERT INTO usage_days VALUES (:day, 'tenants/acme', 7)"), {"day": DAY}
        )
    migrate(engine, "servery_gateway")
    asked = parse_query(None, START, START + timedelta(hours=1), None, ())
    (row,) = UsageStore(engine).query(asked, 10)
    assert row.sums == Sums(requests=7, request_bytes=8, response_bytes=9, duration_us=10)
    assert QuotaStore(engine).requests_of("tenants/acme", DAY) == 7
    assert BillingStore(engine).spent_nanos("tenants/acme", DAY) == 0
    engine.dispose()
