"""What the queue orders jobs by, what tenants used, and studies with their trials."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply it. Jobs from before count as created at the beginning of time, so they run first."""
    with op.batch_alter_table("training_job") as job:
        for name, kind, default in (
            ("priority", sa.Integer, "50"),
            ("cores", sa.Integer, "1"),
            ("memory_bytes", sa.BigInteger, "0"),
            ("create_time_s", sa.Float, "0"),
            ("not_before_s", sa.Float, "0"),
            ("run_since_s", sa.Float, "0"),
            ("crashes", sa.Integer, "0"),
        ):
            job.add_column(sa.Column(name, kind, nullable=False, server_default=default))
    op.create_table(
        "tenant_usage",
        sa.Column("tenant", sa.String(31), primary_key=True),
        sa.Column("machine_s", sa.Float, nullable=False),
        sa.Column("at_s", sa.Float, nullable=False),
    )
    op.create_table(
        "study",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("tenant", sa.String(31), nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("name", name="uq_study_name"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_study_tenant_id", "study", ["tenant", "id"])
    op.create_table(
        "trial",
        sa.Column("study_id", sa.Integer, _study("trial"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sa.Column("curve", sa.Text, nullable=False),
    )
    op.create_table(
        "study_event",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study_id", sa.Integer, _study("study_event"), nullable=False),
        sa.Column("subject", sa.String(200), nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_study_event_study_id_id", "study_event", ["study_id", "id"])


def _study(table: str) -> sa.ForeignKey:
    return sa.ForeignKey("study.id", name=f"fk_{table}_study_id")
