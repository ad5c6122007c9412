"""The database of a process: SQLite in a file, or PostgreSQL. Needs SQLAlchemy and Alembic.

A process that keeps nothing never imports this module and needs neither.
"""

import logging
import os
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError, OperationalError

from servery_rpc.errors import DependencyUnavailableError
from servery_rpc.settings import ServerSettings, option

log = logging.getLogger(__name__)

_MIGRATING: Final = 0x53657276
"""The lock of who changes the schema."""

_READS: Final = "servery_reads"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSettings(ServerSettings):
    """What every server that keeps a database can be told."""

    database: str | None = option(
        "postgresql://user@host/name of the database; a password comes from PGPASSFILE or"
        " PGPASSWORD. Unset: SQLite in the data directory",
        None,
    )

    def __post_init__(self) -> None:
        """See `ServerSettings.__post_init__`."""
        ServerSettings.__post_init__(self)
        self.database_url  # noqa: B018 parsed, so that a bad one is refused now

    @property
    def database_url(self) -> URL | None:
        """`database`, parsed; None: SQLite."""
        if self.database is None:
            return None
        try:
            url = make_url(self.database)
        except ArgumentError:
            url = None
        # Neither is shown: what is wrong may be a secret.
        if url is None or url.drivername != "postgresql":
            raise ValueError("database must be like postgresql://user@host/name")
        if url.password is not None:
            raise ValueError(
                "database must not have a password, which others on this machine could see; set"
                " PGPASSFILE or PGPASSWORD instead"
            )
        return url


def open_database(database: Path | URL, package: str) -> Engine:
    """Open a database with the newest schema. A commit is on the disk when it returns.

    On SQLite every transaction takes the write lock when it begins, so that what it read still
    holds when it writes; `reads` gives an engine for those that only read.

    Args:
        database: The file of an SQLite database, made for this user alone if it is missing; or a
            PostgreSQL database.
        package: Has the migrations, in its folder `migrations`.

    Raises:
        OSError: The file cannot be opened.
        RuntimeError: The database cannot be used; the message has no secret.
    """
    engine = _sqlite(database) if isinstance(database, Path) else _postgresql(database)
    try:
        migrate(engine, package)
    except OperationalError as error:
        engine.dispose()
        raise RuntimeError(f"the database cannot be used: {error.orig}") from None
    except CommandError:
        engine.dispose()
        raise RuntimeError(
            "the database holds the tables of another process or of a newer release; each process"
            " needs a database of its own"
        ) from None
    event.listen(engine, "handle_error", _unavailable)
    return engine


def reads(engine: Engine) -> Engine:
    """Return the same database for transactions that read one snapshot and write nothing."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(**{_READS: True})
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def migrate(engine: Engine, package: str) -> None:
    """Bring the schema to the newest version of `package`, all of it or nothing."""
    with as_file(files(package) / "migrations") as scripts, engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # SQLite lets one in at a time anyway.
            connection.execute(select(func.pg_advisory_xact_lock(_MIGRATING)))
        config = Config()
        config.set_main_option("script_location", str(scripts).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _sqlite(path: Path) -> Engine:
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    engine = create_engine(URL.create("sqlite", database=str(path)))

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # We begin transactions; the driver would begin late.
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "busy_timeout=10000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        only_reads = connection.get_execution_options().get(_READS, False)
        connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")

    return engine


def _postgresql(url: URL) -> Engine:
    return create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)


def _unavailable(context: ExceptionContext) -> None:
    """Say that the database is away, or too busy, in the words of who asked for something else."""
    if context.is_pre_ping:
        return  # Only a connection of before is dead; the pool makes another.
    if isinstance(context.sqlalchemy_exception, OperationalError):
        log.error("the database does not answer: %s", context.original_exception)
        raise DependencyUnavailableError("database") from context.original_exception
