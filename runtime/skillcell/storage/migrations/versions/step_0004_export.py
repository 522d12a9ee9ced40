"""Sinks and what each has taken."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

from skillcell.storage.columns import Bytewise, Instant

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    identity = op.create_table(
        "ledger_identity",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("ledger_id", sa.String(length=64), nullable=False),
        sa.CheckConstraint("id = 1", name="ck_ledger_identity_single_row"),
        sa.PrimaryKeyConstraint("id", name="pk_ledger_identity"),
    )
    op.bulk_insert(identity, [{"id": 1, "ledger_id": secrets.token_hex(12)}])
    op.create_table(
        "export_sinks",
        sa.Column("name", Bytewise(64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("hold_cause", sa.String(length=32), nullable=False),
        sa.Column("hold_reason", sa.Text(), nullable=False),
        sa.Column("cursor", sa.BigInteger(), nullable=False),
        sa.Column("sent_sequence", sa.BigInteger(), nullable=False),
        sa.Column("sent_at", Instant()),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("last_attempt_at", Instant()),
        sa.Column("last_result", sa.Text(), nullable=False),
        sa.Column("refused_in_a_row", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(length=128), nullable=False),
        sa.Column("owned_until", Instant()),
        sa.CheckConstraint("state IN ('RUNNING', 'HELD')", name="ck_export_sinks_state"),
        sa.CheckConstraint("cursor >= 0 AND sent_sequence >= cursor", name="ck_export_sinks_cursor"),
        sa.PrimaryKeyConstraint("name", name="pk_export_sinks"),
    )
    op.create_table(
        "export_dead_letters",
        sa.Column("sink", Bytewise(64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("first_at", Instant(), nullable=False),
        sa.Column("last_at", Instant(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("sent_at", Instant()),
        sa.CheckConstraint("state IN ('DEAD', 'REDRIVE')", name="ck_export_dead_letters_state"),
        sa.ForeignKeyConstraint(["sink"], ["export_sinks.name"], name="fk_export_dead_letters_sink_export_sinks"),
        sa.PrimaryKeyConstraint("sink", "sequence", name="pk_export_dead_letters"),
    )
    op.create_index("ix_export_dead_letters_sink_state_sequence", "export_dead_letters", ["sink", "state", "sequence"])
