"""What tests of several processes share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.postgresql import postgresql, schema


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[URL]:
    """A PostgreSQL server; tests that ask for it are skipped where there can be none."""
    with postgresql() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Path | URL:
    """Where a database is that nothing was written to, on each engine in turn."""
    if request.param == "sqlite":
        return tmp_path / "test.db"
    url = schema(request.getfixturevalue("postgresql_server"))
    return url.set(drivername="postgresql")
