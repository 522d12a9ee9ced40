"""Executions, the ledger and who may call."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from skillcell.storage.columns import Bytewise, Exact, Instant

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "execution_labels",
        sa.Column("execution_id", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("admitted_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("execution_id", "key", name="pk_execution_labels"),
    )
    op.create_index(
        "ix_execution_labels_key_value_tenant_admitted_at_execution_id",
        "execution_labels",
        ["key", "value", "tenant", "admitted_at", "execution_id"],
    )
    op.create_table(
        "executions",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("publisher", sa.String(length=128), nullable=False),
        sa.Column("skill", sa.String(length=128), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("digest", sa.String(length=128), nullable=False),
        sa.Column("entrypoint", sa.Text(), nullable=False),
        sa.Column("isolation", sa.String(length=16), nullable=False),
        sa.Column("driver", sa.String(length=32), nullable=False),
        sa.Column("limits", sa.Text(), nullable=False),
        sa.Column("plan_version", sa.String(length=128), nullable=False),
        sa.Column("parent_id", sa.String(length=64), nullable=False),
        sa.Column("root_id", sa.String(length=64), nullable=False),
        sa.Column("input_bytes", sa.BigInteger(), nullable=False),
        sa.Column("instance_id", sa.String(length=128), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("admitted_at", Instant(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("sandbox_id", sa.String(length=64), nullable=False),
        sa.Column("started_at", Instant(), nullable=True),
        sa.Column("ended_at", Instant(), nullable=True),
        sa.Column("outcome", sa.String(length=32), nullable=True),
        sa.Column("fault", sa.String(length=16), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("signal", sa.Integer(), nullable=True),
        sa.Column("completed_event", sa.LargeBinary(), nullable=True),
        sa.Column("last_event_sequence", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("(state = 'COMPLETED') = (outcome IS NOT NULL)", name="ck_executions_outcome"),
        sa.CheckConstraint("state IN ('QUEUED', 'RUNNING', 'COMPLETED')", name="ck_executions_state"),
        sa.PrimaryKeyConstraint("id", name="pk_executions"),
        sa.UniqueConstraint("tenant", "request_id", name="uq_executions_tenant_request_id"),
    )
    op.create_index("ix_executions_tenant_admitted_at_id", "executions", ["tenant", "admitted_at", "id"])
    op.create_index(
        "ix_executions_tenant_publisher_skill_admitted_at_id",
        "executions",
        ["tenant", "publisher", "skill", "admitted_at", "id"],
    )
    op.create_index(
        "ix_executions_tenant_outcome_admitted_at_id", "executions", ["tenant", "outcome", "admitted_at", "id"]
    )
    op.create_index(
        "ix_executions_unsettled",
        "executions",
        ["instance_id", "id"],
        sqlite_where=sa.text("state <> 'COMPLETED'"),
        postgresql_where=sa.text("state <> 'COMPLETED'"),
    )
    op.create_index(
        "ix_executions_open",
        "executions",
        ["tenant", "admitted_at", "id"],
        sqlite_where=sa.text("state <> 'COMPLETED'"),
        postgresql_where=sa.text("state <> 'COMPLETED'"),
    )
    op.create_table(
        "ledger_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("id = 1", name="ck_ledger_head_single_row"),
        sa.PrimaryKeyConstraint("id", name="pk_ledger_head"),
    )
    op.create_table(
        "store_probe",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("probed_at", Instant(), nullable=False),
        sa.CheckConstraint("id = 1", name="ck_store_probe_single_row"),
        sa.PrimaryKeyConstraint("id", name="pk_store_probe"),
    )
    op.create_table(
        "tenants",
        sa.Column("name", Bytewise(128), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("rate_plan", sa.String(length=64), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("state IN ('ACTIVE', 'SUSPENDED')", name="ck_tenants_state"),
        sa.PrimaryKeyConstraint("name", name="pk_tenants"),
    )
    op.create_table(
        "totals",
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("publisher", sa.String(length=128), nullable=False),
        sa.Column("skill", sa.String(length=128), nullable=False),
        sa.Column("outcome", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("series_tenant", sa.String(length=128), nullable=False),
        sa.Column("series_publisher", sa.String(length=128), nullable=False),
        sa.Column("series_skill", sa.String(length=128), nullable=False),
        sa.Column("calls", Exact(), nullable=False),
        sa.Column("billed_ms", Exact(), nullable=False),
        sa.Column("cpu_ns", Exact(), nullable=False),
        sa.Column("memory_reserved_byte_ns", Exact(), nullable=False),
        sa.Column("egress_bytes", Exact(), nullable=False),
        sa.Column("output_bytes", Exact(), nullable=False),
        sa.CheckConstraint("kind IN ('USAGE', 'CORRECTION')", name="ck_totals_kind"),
        sa.PrimaryKeyConstraint("tenant", "publisher", "skill", "outcome", "kind", name="pk_totals"),
    )
    op.create_index("ix_totals_series_skill", "totals", ["series_skill"])
    op.create_index("ix_totals_series_tenant", "totals", ["series_tenant"])
    op.create_table(
        "usage_records",
        sa.Column(
            "sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("execution_id", sa.String(length=64), nullable=False),
        sa.Column("correction_of", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("publisher", sa.String(length=128), nullable=False),
        sa.Column("skill", sa.String(length=128), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("entrypoint", sa.Text(), nullable=False),
        sa.Column("isolation", sa.String(length=16), nullable=False),
        sa.Column("outcome", sa.String(length=32), nullable=False),
        sa.Column("billable", sa.Boolean(), nullable=False),
        sa.Column("ended_at", Instant(), nullable=False),
        sa.Column("calls", sa.Integer(), nullable=False),
        sa.Column("billed_ms", sa.BigInteger(), nullable=False),
        sa.Column("run_ns", sa.BigInteger(), nullable=False),
        sa.Column("cpu_ns", sa.BigInteger(), nullable=False),
        sa.Column("memory_reserved_byte_ns", Exact(), nullable=False),
        sa.Column("egress_in_bytes", sa.BigInteger(), nullable=False),
        sa.Column("egress_out_bytes", sa.BigInteger(), nullable=False),
        sa.Column("input_bytes", sa.BigInteger(), nullable=False),
        sa.Column("output_bytes", sa.BigInteger(), nullable=False),
        sa.Column("artifact_bytes", sa.BigInteger(), nullable=False),
        sa.Column("plan_version", sa.String(length=128), nullable=False),
        sa.Column("rated_cpu_milli_ns", sa.BigInteger(), nullable=False),
        sa.Column("rated_memory_used_byte_ns", Exact(), nullable=False),
        sa.Column("rated_memory_larger_byte_ns", Exact(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("previous_hash", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_usage_records"),
        sa.UniqueConstraint("event_id", name="uq_usage_records_event_id"),
    )
    op.create_index("ix_usage_records_tenant_ended_at_sequence", "usage_records", ["tenant", "ended_at", "sequence"])
    op.create_index("ix_usage_records_tenant_sequence", "usage_records", ["tenant", "sequence"])
    op.create_index("ix_usage_records_publisher_sequence", "usage_records", ["publisher", "sequence"])
    op.create_index("ix_usage_records_publisher_skill_sequence", "usage_records", ["publisher", "skill", "sequence"])
    op.create_index(
        "ix_usage_records_tenant_publisher_skill_sequence",
        "usage_records",
        ["tenant", "publisher", "skill", "sequence"],
    )
    op.create_index(
        "ix_usage_records_corrected",
        "usage_records",
        ["execution_id"],
        sqlite_where=sa.text("correction_of <> ''"),
        postgresql_where=sa.text("correction_of <> ''"),
    )
    op.create_index(
        "ix_usage_records_publisher_ended_at_sequence", "usage_records", ["publisher", "ended_at", "sequence"]
    )
    op.create_index("ix_usage_records_ended_at_sequence", "usage_records", ["ended_at", "sequence"])
    op.create_index(
        "ix_usage_records_correction_of",
        "usage_records",
        ["correction_of"],
        sqlite_where=sa.text("correction_of <> ''"),
        postgresql_where=sa.text("correction_of <> ''"),
    )
    op.create_index(
        "uq_usage_records_execution_id",
        "usage_records",
        ["execution_id"],
        unique=True,
        sqlite_where=sa.text("correction_of = ''"),
        postgresql_where=sa.text("correction_of = ''"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("roles", sa.Text(), nullable=False),
        sa.Column("publishers", sa.Text(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=True),
        sa.Column("revoked_at", Instant(), nullable=True),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name="fk_api_keys_tenant_tenants"),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("secret_sha256", name="uq_api_keys_secret_sha256"),
    )
    op.create_index("ix_api_keys_tenant", "api_keys", ["tenant"])
    op.create_table(
        "ledger_defects",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("defect", sa.String(length=32), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("found_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_ledger_defects"),
    )
    op.execute(
        sa.text("INSERT INTO ledger_head (id, sequence, hash) VALUES (1, 0, :genesis)").bindparams(genesis=bytes(32))
    )
