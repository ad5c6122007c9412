"""Quotas, and when a key was last used."""

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"


def upgrade() -> None:
    """Make the table and the column."""
    op.create_table(
        "quotas",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("requests_per_second", sa.BigInteger, nullable=False),
        sa.Column("requests_per_day", sa.BigInteger, nullable=False),
    )
    op.add_column("api_keys", sa.Column("last_use_minute", sa.BigInteger))
