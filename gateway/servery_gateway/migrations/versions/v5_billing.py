"""What the engine counts, prices, budgets, and quotas of calls in flight."""

import sqlalchemy as sa
from alembic import op

revision = "5"
down_revision = "4"

_MOVE = """
INSERT INTO usage_sums
  (minute, tenant, api_key, model, code, version,
   requests, request_bytes, response_bytes, duration_us, "rows", compute_ns, cost_nanos)
SELECT minute, tenant, api_key, model, code, 0,
  requests, request_bytes, response_bytes, duration_us, 0, 0, 0
FROM usage
"""


def upgrade() -> None:
    """Make the tables; sums move to one with a longer key."""
    op.create_table(
        "usage_sums",
        sa.Column("minute", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("api_key", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("code", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("request_bytes", sa.BigInteger, nullable=False),
        sa.Column("response_bytes", sa.BigInteger, nullable=False),
        sa.Column("duration_us", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("compute_ns", sa.BigInteger, nullable=False),
        sa.Column("cost_nanos", sa.BigInteger, nullable=False),
    )
    op.execute(_MOVE)
    op.drop_table("usage")
    for table, column in (("usage_days", "cost_nanos"), ("quotas", "requests_in_flight")):
        op.add_column(table, sa.Column(column, sa.BigInteger, nullable=False, server_default="0"))
    op.create_table(
        "prices",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("thousand_requests_nanos", sa.BigInteger, nullable=False),
        sa.Column("thousand_rows_nanos", sa.BigInteger, nullable=False),
        sa.Column("compute_second_nanos", sa.BigInteger, nullable=False),
        sa.Column("gigabyte_nanos", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "budgets",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("amount_nanos", sa.BigInteger, nullable=False),
        sa.Column("alert_percents", sa.Text, nullable=False),
        sa.Column("hard_stop", sa.Boolean, nullable=False),
    )
    op.create_table(
        "budget_alerts",
        sa.Column("owner", sa.Text, primary_key=True),
        sa.Column("month", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("percent", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("time", sa.BigInteger, nullable=False),
    )
