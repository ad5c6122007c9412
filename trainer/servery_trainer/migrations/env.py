"""Runs the migrations on the connection that `servery_trainer.database` hands over."""

from alembic import context

from servery_trainer.database import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,  # SQLite cannot alter most of a table in place.
)
with context.begin_transaction():
    context.run_migrations()
