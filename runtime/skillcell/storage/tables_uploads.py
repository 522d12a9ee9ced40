"""The table of inputs that were sent ahead.

What a reader could get wrong: a row belongs to one gateway, because the file it speaks of lies on that gateway's disk;
and to one tenant, so that two tenants who send the same bytes have two rows and two files, and neither can tell.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, String, Table

from skillcell.storage.columns import Instant
from skillcell.storage.metadata import metadata

uploads = Table(
    "uploads",
    metadata,
    Column("instance_id", String(128), primary_key=True),
    Column("tenant", String(128), primary_key=True),
    Column("digest", String(80), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Index(None, "instance_id", "expires_at"),
)
