"""Inputs that were sent ahead."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from skillcell.storage.columns import Instant

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("instance_id", sa.String(length=128), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("instance_id", "tenant", "digest", name="pk_uploads"),
    )
    op.create_index("ix_uploads_instance_id_expires_at", "uploads", ["instance_id", "expires_at"])
