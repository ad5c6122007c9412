"""The first tables."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables and begin the log."""
    op.create_table(
        "models",
        sa.Column("tenant", sa.String(31), primary_key=True),
        sa.Column("model", sa.String(63), primary_key=True),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("latest_version", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("tenant", sa.String(31), primary_key=True),
        sa.Column("model", sa.String(63), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("files", sa.JSON, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["tenant", "model"], ["models.tenant", "models.model"]),
    )
    version = ["versions.tenant", "versions.model", "versions.number"]
    op.create_table(
        "aliases",
        sa.Column("tenant", sa.String(31), primary_key=True),
        sa.Column("model", sa.String(63), primary_key=True),
        sa.Column("alias", sa.String(63), primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("etag", sa.String(32), nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["tenant", "model", "number"], version),
    )
    op.create_table(
        "requests",
        sa.Column("tenant", sa.String(31), primary_key=True),
        sa.Column("request_id", sa.String(36), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("model", sa.String(63), nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["tenant", "model", "number"], version),
    )
    op.create_index("ix_requests_create_time", "requests", ["create_time"])
    log = op.create_table(
        "log",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(log, [{"id": uuid.uuid4().hex, "position": 0}])
    op.create_table(
        "events",
        sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("tenant", sa.String(31), nullable=False),
        sa.Column("model", sa.String(63), nullable=False),
        sa.Column("number", sa.BigInteger),
        sa.Column("alias", sa.String(63)),
        sa.Column("time", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_events_tenant_position", "events", ["tenant", "position"])


def downgrade() -> None:
    """Drop everything."""
    for table in ("events", "log", "requests", "aliases", "versions", "models"):
        op.drop_table(table)
