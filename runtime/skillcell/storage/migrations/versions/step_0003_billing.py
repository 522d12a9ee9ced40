"""Rate plans, who is rated by which, closed periods, corrections."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from skillcell.storage.columns import Bytewise, Instant

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tenant_publishers",
        sa.Column("publisher", sa.String(length=128), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name="fk_tenant_publishers_tenant_tenants"),
        sa.PrimaryKeyConstraint("publisher", name="pk_tenant_publishers"),
    )
    op.create_index("ix_tenant_publishers_tenant", "tenant_publishers", ["tenant"])
    op.create_table(
        "rate_plans",
        sa.Column("name", Bytewise(64), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("name", "number", name="pk_rate_plans"),
        sa.UniqueConstraint("name", "sha256", name="uq_rate_plans_name_sha256"),
    )
    op.create_index("ix_rate_plans_created_at_name_number", "rate_plans", ["created_at", "name", "number"])
    op.create_table(
        "rate_plan_names",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("current_number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_rate_plan_names"),
    )
    op.create_table(
        "billing_periods",
        sa.Column("period", sa.String(length=7), nullable=False),
        sa.Column("last_sequence", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", Instant(), nullable=False),
        sa.Column("closed_by", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("period", name="pk_billing_periods"),
    )
    op.create_table(
        "period_plans",
        sa.Column("period", sa.String(length=7), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("plan_version", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(["period"], ["billing_periods.period"], name="fk_period_plans_period_billing_periods"),
        sa.PrimaryKeyConstraint("period", "tenant", name="pk_period_plans"),
    )
    op.create_table(
        "corrections",
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("actor_tenant", sa.String(length=128), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name="pk_corrections"),
        sa.UniqueConstraint("actor_tenant", "request_id", name="uq_corrections_actor_tenant_request_id"),
    )
