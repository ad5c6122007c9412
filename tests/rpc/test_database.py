"""Databases are opened alike on SQLite and PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from sqlalchemy import URL, Engine, text

from servery_rpc.database import DatabaseSettings, open_database, reads
from servery_rpc.errors import DependencyUnavailableError

PACKAGE = "servery_registry"
POSITION = text("SELECT position FROM log")
MOVE = text("UPDATE log SET position = position + 1")


@pytest.fixture
def engine(empty_database: Path | URL) -> Iterator[Engine]:
    opened = open_database(empty_database, PACKAGE)
    yield opened
    opened.dispose()


def test_opening_again_changes_nothing(engine: Engine, empty_database: Path | URL) -> None:
    with engine.begin() as connection:
        connection.execute(MOVE)
    again = open_database(empty_database, PACKAGE)
    with again.begin() as connection:
        assert connection.execute(POSITION).scalar() == 1
        assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1
    again.dispose()


def test_who_reads_sees_one_snapshot_and_nobody_waits(engine: Engine) -> None:
    with reads(engine).begin() as reading:
        assert reading.execute(POSITION).scalar() == 0
        with engine.begin() as writing:
            writing.execute(MOVE)
        assert reading.execute(POSITION).scalar() == 0
    with reads(engine).begin() as reading:
        assert reading.execute(POSITION).scalar() == 1


def test_processes_that_start_at_once_migrate_once(empty_database: Path | URL) -> None:
    engines: list[Engine] = []

    def start() -> None:
        engines.append(open_database(empty_database, PACKAGE))

    threads = [Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(engines) == 4
    for engine in engines:
        engine.dispose()


def test_a_commit_on_sqlite_waits_for_the_disk(tmp_path: Path) -> None:
    engine = open_database(tmp_path / "a%20b.db", PACKAGE)
    with engine.begin() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2  # FULL
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
    engine.dispose()
    assert (tmp_path / "a%20b.db").stat().st_mode & 0o777 == 0o600


def test_a_database_that_does_not_answer_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    engine = open_database(path, PACKAGE)
    engine.dispose()
    path.unlink()
    path.mkdir()
    with pytest.raises(DependencyUnavailableError), engine.begin():
        pass


def test_a_database_that_cannot_be_reached_stops_the_start(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    url = URL.create("postgresql", "me", host=str(tmp_path), database="none")
    with pytest.raises(RuntimeError, match="the database cannot be used"):
        open_database(url, PACKAGE)


def test_the_database_of_another_process_is_left_alone(empty_database: Path | URL) -> None:
    open_database(empty_database, PACKAGE).dispose()
    for other in ("servery_trainer", "servery_gateway"):
        with pytest.raises(RuntimeError, match="a database of its own"):
            open_database(empty_database, other)
    open_database(empty_database, PACKAGE).dispose()


@pytest.mark.parametrize(
    "database", ["mysql://host/name", "name", "postgresql://me:secret@host/name"]
)
def test_a_setting_that_cannot_be_is_refused_and_not_repeated(database: str) -> None:
    with pytest.raises(ValueError, match="database") as caught:
        DatabaseSettings(database=database)
    assert "secret" not in str(caught.value)
    assert DatabaseSettings().database_url is None
    settings = DatabaseSettings(database="postgresql://me@host/name")
    assert settings.database_url
    assert settings.database_url.database == "name"
