"""The tables that migrations make are the ones the code reads."""

from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL

from servery_trainer.database import METADATA, open_database


def test_migrations_arrive_at_the_tables(empty_database: Path | URL) -> None:
    engine = open_database(empty_database)
    with engine.begin() as connection:
        different = compare_metadata(MigrationContext.configure(connection), METADATA)
    assert [d for d in different if d[0][0] != "modify_comment"] == []  # Those are for readers.
    engine.dispose()
