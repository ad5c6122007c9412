"""What tests of several processes share."""

from collections.abc import Iterator

import pytest
from sqlalchemy import URL

from tests.postgresql import postgresql


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[URL]:
    """A PostgreSQL server; tests that ask for it are skipped where there can be none."""
    with postgresql() as server:
        yield server
