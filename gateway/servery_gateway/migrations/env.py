"""Runs migrations on the connection that `servery_gateway.database.migrate` hands over."""

from alembic import context

from servery_gateway.database import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
