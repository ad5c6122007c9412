"""The first schema: tenants and API keys."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "tenants",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("display_name", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, sa.ForeignKey("tenants.tenant"), nullable=False),
        sa.Column("display_name", sa.Text, nullable=False),
        sa.Column("secret_digest", sa.Text, nullable=False, unique=True),
        sa.Column("permissions", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.BigInteger),
        sa.Column("revoke_time", sa.BigInteger, index=True),
    )
    op.create_index("api_keys_by_tenant", "api_keys", ["tenant", "create_time", "key"])
