"""Routes of models."""

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "routes",
        sa.Column("tenant", sa.Text, sa.ForeignKey("tenants.tenant"), primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("pools", sa.Text, nullable=False),
        sa.Column("mirror_pool", sa.Text, nullable=False),
    )
