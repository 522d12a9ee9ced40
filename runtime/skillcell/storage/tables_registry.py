"""The tables of the catalogue of Skills. They join the shared MetaData on import, so migrations must import this too.

A row of `skill_versions` never changes but for its state: everything else of a version is fixed by its digest.
`sort_key` orders versions as SemVer does when compared as text, so that the database can find the highest;
`search_text` and `callable` speak of the newest version, for search and lists alone.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKeyConstraint, Index, Integer, String, Table, Text
from sqlalchemy import UniqueConstraint as Unique

from skillcell.storage.columns import Bytewise, Instant
from skillcell.storage.metadata import metadata

skills = Table(
    "skills",
    metadata,
    Column("publisher", Bytewise(128), primary_key=True),
    Column("name", Bytewise(128), primary_key=True),
    Column("owner_tenant", String(128), nullable=False),
    Column("visibility", String(16), nullable=False),
    Column("search_text", Text, nullable=False),
    Column("callable", Boolean, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
)

skill_versions = Table(
    "skill_versions",
    metadata,
    # BigInteger would lose SQLite's rowid; the order of publication is this number.
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("publisher", Bytewise(128), nullable=False),
    Column("name", Bytewise(128), nullable=False),
    Column("version", String(128), nullable=False),
    Column("sort_key", Bytewise(512), nullable=False),
    Column("prerelease", Boolean, nullable=False),
    Column("digest", String(80), nullable=False),
    Column("package_digest", String(64), nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("state_reason", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("file_count", Integer, nullable=False),
    Column("body", Text, nullable=False),
    ForeignKeyConstraint(["publisher", "name"], ["skills.publisher", "skills.name"]),
    Unique("publisher", "name", "version"),
    Unique("publisher", "name", "digest"),
    Index(None, "publisher", "name", "sort_key"),
)

skill_aliases = Table(
    "skill_aliases",
    metadata,
    Column("publisher", Bytewise(128), primary_key=True),
    Column("name", Bytewise(128), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("version", String(128), nullable=False),
    ForeignKeyConstraint(
        ["publisher", "name", "version"],
        ["skill_versions.publisher", "skill_versions.name", "skill_versions.version"],
    ),
)

skill_grants = Table(
    "skill_grants",
    metadata,
    Column("publisher", Bytewise(128), primary_key=True),
    Column("name", Bytewise(128), primary_key=True),
    Column("tenant", String(128), primary_key=True),
    ForeignKeyConstraint(["publisher", "name"], ["skills.publisher", "skills.name"]),
)
