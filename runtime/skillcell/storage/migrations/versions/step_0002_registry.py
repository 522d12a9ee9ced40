"""The catalogue of Skills."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from skillcell.storage.columns import Bytewise, Instant

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "skills",
        sa.Column("publisher", Bytewise(128), nullable=False),
        sa.Column("name", Bytewise(128), nullable=False),
        sa.Column("owner_tenant", sa.String(length=128), nullable=False),
        sa.Column("visibility", sa.String(length=16), nullable=False),
        sa.Column("search_text", sa.Text(), nullable=False),
        sa.Column("callable", sa.Boolean(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("updated_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("publisher", "name", name="pk_skills"),
    )
    op.create_table(
        "skill_grants",
        sa.Column("publisher", Bytewise(128), nullable=False),
        sa.Column("name", Bytewise(128), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(
            ["publisher", "name"], ["skills.publisher", "skills.name"], name="fk_skill_grants_publisher_name_skills"
        ),
        sa.PrimaryKeyConstraint("publisher", "name", "tenant", name="pk_skill_grants"),
    )
    op.create_table(
        "skill_versions",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("publisher", Bytewise(128), nullable=False),
        sa.Column("name", Bytewise(128), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("sort_key", Bytewise(512), nullable=False),
        sa.Column("prerelease", sa.Boolean(), nullable=False),
        sa.Column("digest", sa.String(length=80), nullable=False),
        sa.Column("package_digest", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("file_count", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["publisher", "name"], ["skills.publisher", "skills.name"], name="fk_skill_versions_publisher_name_skills"
        ),
        sa.PrimaryKeyConstraint("number", name="pk_skill_versions"),
        sa.UniqueConstraint("publisher", "name", "digest", name="uq_skill_versions_publisher_name_digest"),
        sa.UniqueConstraint("publisher", "name", "version", name="uq_skill_versions_publisher_name_version"),
    )
    op.create_index("ix_skill_versions_package_digest", "skill_versions", ["package_digest"])
    op.create_index("ix_skill_versions_publisher_name_sort_key", "skill_versions", ["publisher", "name", "sort_key"])
    op.create_table(
        "skill_aliases",
        sa.Column("publisher", Bytewise(128), nullable=False),
        sa.Column("name", Bytewise(128), nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(
            ["publisher", "name", "version"],
            ["skill_versions.publisher", "skill_versions.name", "skill_versions.version"],
            name="fk_skill_aliases_publisher_name_version_skill_versions",
        ),
        sa.PrimaryKeyConstraint("publisher", "name", "alias", name="pk_skill_aliases"),
    )
