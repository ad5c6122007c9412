"""The database of one registry: opened, migrated, closed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event

_MIGRATIONS: Final = Path(__file__).with_name("migrations")

WRITES: Final = "servery_writes"
"""Execution option of a connection whose transactions write: they take the lock at their start."""


@contextmanager
def open_database(path: Path) -> Iterator[Engine]:
    """Open the SQLite file at `path`, created if missing, with the tables of this release.

    A commit is on the disk when it returns.

    Raises:
        OSError: The file cannot be opened.
    """
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    try:
        _migrate(engine)
        yield engine
    finally:
        engine.dispose()


def _configure(connection: Any, _record: Any) -> None:
    # sqlite3 would begin transactions only before writes; then a read of two statements is no
    # snapshot. From here on `_begin` does it.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    with engine.execution_options(**{WRITES: True}).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
