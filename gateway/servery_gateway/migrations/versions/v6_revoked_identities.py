"""Identities that are refused."""

import sqlalchemy as sa
from alembic import op

revision = "6"
down_revision = "5"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "revoked_identities",
        sa.Column("tenant", sa.Text, sa.ForeignKey("tenants.tenant"), primary_key=True),
        sa.Column("identity", sa.Text, primary_key=True),
        sa.Column("revoke_time", sa.BigInteger, nullable=False),
    )
