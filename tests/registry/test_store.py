"""The tables, and what the store promises beyond what the wire shows."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL, Engine

from servery_registry import schema
from servery_registry.database import open_database
from servery_registry.sql_store import SqlStore
from servery_registry.store import NewVersion, RequestKey, VersionNotFoundError
from servery_registry.version import Alias, File, Version, bundle_digest
from servery_rpc.names import AliasName, ModelName, VersionName
from tests.registry.conftest import Clock

MODEL = ModelName("acme", "digits")
FILES = (File("a", 1, "a" * 64), File("b", 2, "b" * 64))
NEW = NewVersion(model=MODEL, files=FILES, metrics={"accuracy": 0.1 + 0.2})


@pytest.fixture
def engine(empty_database: Path | URL) -> Iterator[Engine]:
    with open_database(empty_database) as engine:
        yield engine


@pytest.fixture
def store(engine: Engine, clock: Clock) -> SqlStore:
    return SqlStore(engine, clock, lambda: None)


def test_the_migrations_make_the_tables_of_the_schema(engine: Engine) -> None:
    with engine.begin() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, schema.metadata) == []


def test_values_survive_exactly(store: SqlStore, clock: Clock) -> None:
    clock.time = clock.time.replace(microsecond=123456)
    added = store.add_version(NEW, None)
    assert store.version(VersionName(MODEL, 1)) == added
    assert added == Version(
        name=VersionName(MODEL, 1),
        files=FILES,
        metrics=NEW.metrics,
        digest=bundle_digest(FILES),
        create_time=clock(),
    )


def test_the_digest_of_a_bundle_is_the_documented_one() -> None:
    # printf '%s  a\n%s  b\n' aaaa…(64) bbbb…(64) | sha256sum
    expected = "484bcbb7d16ffcba78a16ecc948318c2f39b3bebb677b643fad91391750add89"
    assert bundle_digest(FILES) == bundle_digest(FILES[::-1]) == expected


def test_writers_in_many_threads_leave_no_gap(store: SqlStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        added = list(threads.map(lambda _: store.add_version(NEW, None), range(40)))
    assert sorted(version.name.number for version in added) == list(range(1, 41))
    changes = store.changes(None, 0, 100)
    assert [change.position for change in changes] == list(range(1, 41))
    assert [c.subject.name.number for c in changes if isinstance(c.subject, Version)] == list(
        range(1, 41)
    )


def test_a_request_repeated_in_many_threads_makes_one_version(store: SqlStore) -> None:
    request = RequestKey("id", "d")
    with ThreadPoolExecutor(8) as threads:
        added = set(threads.map(lambda _: store.add_version(NEW, request).name, range(16)))
    assert added == {VersionName(MODEL, 1)}


def test_requests_of_two_tenants_do_not_meet(store: SqlStore) -> None:
    request = RequestKey("id", "d")
    other = NewVersion(model=ModelName("other", "digits"), files=FILES, metrics={})
    store.add_version(NEW, request)
    assert store.answered("other", request) is None
    assert store.add_version(other, RequestKey("id", "e")).name.model == other.model


def test_the_log_tells_each_state_an_alias_had(store: SqlStore) -> None:
    for _ in range(2):
        store.add_version(NEW, None)
    name = AliasName(MODEL, "production")
    first = store.set_alias(name, 1, "")
    second = store.set_alias(name, 2, first.etag)
    store.delete_alias(name, second.etag)
    subjects = [change.subject for change in store.changes("acme", 2, 100)]
    assert subjects == [first, second, name]
    assert isinstance(subjects[0], Alias)
    assert store.changes("other", 0, 100) == []


def test_only_writes_that_were_committed_are_announced(
    engine: Engine, store: SqlStore, clock: Clock
) -> None:
    seen_by_another: list[int] = []
    announcing = SqlStore(engine, clock, lambda: seen_by_another.append(store.position()))
    announcing.add_version(NEW, None)
    with pytest.raises(VersionNotFoundError):
        announcing.set_alias(AliasName(MODEL, "production"), 9, "")
    assert seen_by_another == [1]
