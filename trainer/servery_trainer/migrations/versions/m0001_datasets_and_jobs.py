"""Datasets, training jobs, their events and the requests that created them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply it."""
    op.create_table(
        "dataset",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("tenant", sa.String(31), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("tenant", "sha256", name="uq_dataset_tenant_sha256"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "training_job",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("tenant", sa.String(31), nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("committing", sa.Boolean, nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("name", name="uq_training_job_name"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_training_job_state_id", "training_job", ["state", "id"])
    op.create_index("ix_training_job_tenant_id", "training_job", ["tenant", "id"])
    op.create_table(
        "job_event",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column(
            "job_id",
            sa.Integer,
            sa.ForeignKey("training_job.id", name="fk_job_event_job_id"),
            nullable=False,
        ),
        sa.Column("subject", sa.String(200), nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_job_event_job_id_id", "job_event", ["job_id", "id"])
    op.create_table(
        "create_request",
        sa.Column("tenant", sa.String(31), primary_key=True),
        sa.Column("request_id", sa.String(36), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column(
            "job_id",
            sa.Integer,
            sa.ForeignKey("training_job.id", name="fk_create_request_job_id"),
            nullable=False,
        ),
        sa.Column("create_time_s", sa.BigInteger, nullable=False),
    )
