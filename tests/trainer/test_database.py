"""The tables that migrations make are the ones the code reads."""

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from servery_trainer.database import METADATA, open_database, reads


def test_migrations_arrive_at_the_tables(tmp_path: Path) -> None:
    engine = open_database(tmp_path / "t.db")
    with engine.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    open_database(tmp_path / "t.db").dispose()
    engine = open_database(tmp_path / "t.db")
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM alembic_version").scalar() == 1
    engine.dispose()


def test_a_commit_survives_a_loss_of_power_and_readers_do_not_wait(tmp_path: Path) -> None:
    engine = open_database(tmp_path / "t.db")
    with engine.begin() as writing, reads(engine).begin() as reading:
        assert writing.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert reading.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert reading.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    engine.dispose()
