"""What each sink has taken, what it may have taken, and what it refused.

Everything up to `cursor` is done: acknowledged by the sink, or among the dead letters. What lies past it, up to
`sent_sequence`, has been sent at least once without an answer that could be kept, so the sink may have it or not.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, Integer, LargeBinary, String, Table, Text

from skillcell.storage.columns import Bytewise, Instant
from skillcell.storage.metadata import metadata

ledger_identity = Table(
    "ledger_identity",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    # Random, made with the tables: names this ledger to sinks for as long as it lives, through copies and moves.
    Column("ledger_id", String(64), nullable=False),
    CheckConstraint("id = 1", name="single_row"),
)

export_sinks = Table(
    "export_sinks",
    metadata,
    Column("name", Bytewise(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("hold_cause", String(32), nullable=False),
    Column("hold_reason", Text, nullable=False),
    Column("cursor", BigInteger, nullable=False),
    Column("sent_sequence", BigInteger, nullable=False),
    # When the oldest of what is sent and not acknowledged was sent first; NULL where nothing is.
    Column("sent_at", Instant),
    # The envelope that was used for it: a resend must have the same bytes, whatever the settings say by then.
    Column("source", Text, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("attempts", BigInteger, nullable=False),
    Column("last_attempt_at", Instant),
    Column("last_result", Text, nullable=False),
    Column("refused_in_a_row", Integer, nullable=False),
    # The gateway that delivers to it, where several share the store.
    Column("owner", String(128), nullable=False),
    Column("owned_until", Instant),
    CheckConstraint("state IN ('RUNNING', 'HELD')", name="state"),
    CheckConstraint("cursor >= 0 AND sent_sequence >= cursor", name="cursor"),
)

export_dead_letters = Table(
    "export_dead_letters",
    metadata,
    Column("sink", Bytewise(64), ForeignKey("export_sinks.name"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("event_id", String(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("status", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("attempts", BigInteger, nullable=False),
    Column("first_at", Instant, nullable=False),
    Column("last_at", Instant, nullable=False),
    Column("state", String(16), nullable=False),
    # When it was sent again without an answer that could be kept; NULL where it was not.
    Column("sent_at", Instant),
    CheckConstraint("state IN ('DEAD', 'REDRIVE')", name="state"),
    Index(None, "sink", "state", "sequence"),
)
