"""The schemas of every process, made by their migrations on PostgreSQL."""

from importlib import import_module
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, create_engine, inspect

from tests.postgresql import schema


@pytest.mark.parametrize("process", ["servery_gateway", "servery_registry", "servery_trainer"])
def test_migrations_run_on_postgresql(postgresql_server: URL, process: str) -> None:
    package = import_module(process)
    config = Config()
    config.set_main_option("script_location", str(Path(package.__path__[0]) / "migrations"))
    engine = create_engine(schema(postgresql_server))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    assert len(inspect(engine).get_table_names()) > 2
    engine.dispose()
