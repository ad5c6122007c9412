"""A PostgreSQL server for tests, where its programs are installed."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, text

_INIT = ("-U", "servery", "-A", "trust", "-N", "--locale=C", "--encoding=UTF8")
_USERS = ("postgres", "nobody")
"""As whom the server runs where the tests run as root, which it refuses."""


@contextmanager
def postgresql() -> Iterator[URL]:
    """Run a server on a unix socket inside the block; skip the test where that cannot be."""
    programs = _programs()
    user = _user()
    with tempfile.TemporaryDirectory(prefix="servery-pg-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        if user:
            shutil.chown(directory, user)
        data = directory / "data"
        log = directory / "log"
        flags = f"-k {directory} -c listen_addresses='' -c fsync=off"
        _run(user, programs / "initdb", "-D", data, *_INIT)
        _run(user, programs / "pg_ctl", "-D", data, "-w", "-l", log, "-o", flags, "start")
        try:
            yield URL.create(
                "postgresql+psycopg",
                "servery",
                database="postgres",
                query={"host": str(directory)},
            )
        finally:
            _run(user, programs / "pg_ctl", "-D", data, "-m", "fast", "stop")


@contextmanager
def database(server: URL) -> Iterator[URL]:
    """Make a database of its own inside the block."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        yield server.set(database=name)
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


def schema(server: URL) -> URL:
    """Make what is as empty as a new database and faster to make: a schema of its own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    engine = create_engine(server)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {name}"))
    engine.dispose()
    return server.update_query_dict({"options": f"-csearch_path={name}"})


def _run(user: str | None, *argv: str | Path) -> None:
    # Not `user=` of subprocess: it forks, and gRPC's threads do not survive that in the child.
    become = ("setpriv", f"--reuid={user}", "--clear-groups") if user else ()
    subprocess.run((*become, *argv), check=True, cwd="/", stdout=subprocess.DEVNULL)


def _programs() -> Path:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    found = shutil.which("initdb")
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found is None and not versions:
        pytest.skip("PostgreSQL is not installed")
    return (Path(found) if found else versions[-1]).parent


def _user() -> str | None:
    if os.geteuid() != 0:
        return None
    if shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL does not run as root, and there is no setpriv")
    known = {entry.pw_name for entry in pwd.getpwall()}
    for user in _USERS:
        if user in known:
            return user
    pytest.skip("PostgreSQL does not run as root, and there is nobody else")
