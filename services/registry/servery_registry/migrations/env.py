"""Alembic's entry: migrate over the connection that `database.py` passes."""

from alembic import context

from servery_registry.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
