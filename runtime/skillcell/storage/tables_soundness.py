"""What verification has found, kept so that a restart, or another gateway on the same store, admits nothing either."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, String, Table, Text

from skillcell.storage.columns import Instant
from skillcell.storage.metadata import metadata

ledger_defects = Table(
    "ledger_defects",
    metadata,
    # In the order they were found; at most a hundred, all of one verification.
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("defect", String(32), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("detail", Text, nullable=False),
    Column("found_at", Instant, nullable=False),
)
