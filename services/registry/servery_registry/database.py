"""The database of one registry: opened, migrated, closed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Engine

from servery_rpc import database


@contextmanager
def open_database(where: Path | URL) -> Iterator[Engine]:
    """Open the SQLite file or the PostgreSQL database `where`, with the tables of this release.

    Raises:
        OSError: The file cannot be opened.
        RuntimeError: The database cannot be used.
    """
    engine = database.open_database(where, "servery_registry")
    try:
        yield engine
    finally:
        engine.dispose()
