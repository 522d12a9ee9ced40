"""The tables of calls, usage, totals and identities.

What a reader could get wrong: `usage_records.body` is the truth and the other columns of that table only a
projection for filters and sums (verification compares them). Labels live apart, without foreign keys, so that they
can be erased, and executions forgotten, without touching a usage record.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
    text,
)

from skillcell.storage.columns import Bytewise, Exact, Instant
from skillcell.storage.metadata import metadata

_UNSETTLED = text("state <> 'COMPLETED'")
_ORIGINAL = text("correction_of = ''")
_CORRECTION = text("correction_of <> ''")

executions = Table(
    "executions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(128), nullable=False),
    # NULL, not '', where the caller gave none: NULLs never collide.
    Column("request_id", String(64)),
    Column("request_hash", LargeBinary, nullable=False),
    Column("publisher", String(128), nullable=False),
    Column("skill", String(128), nullable=False),
    Column("version", String(128), nullable=False),
    Column("digest", String(128), nullable=False),
    Column("entrypoint", Text, nullable=False),
    Column("isolation", String(16), nullable=False),
    Column("driver", String(32), nullable=False),
    Column("limits", Text, nullable=False),
    Column("plan_version", String(128), nullable=False),
    Column("parent_id", String(64), nullable=False),
    Column("root_id", String(64), nullable=False),
    Column("input_bytes", BigInteger, nullable=False),
    Column("instance_id", String(128), nullable=False),
    Column("boot_id", String(64), nullable=False),
    Column("admitted_at", Instant, nullable=False),
    Column("state", String(16), nullable=False),
    Column("sandbox_id", String(64), nullable=False),
    Column("started_at", Instant),
    Column("ended_at", Instant),
    Column("outcome", String(32)),
    Column("fault", String(16)),
    Column("exit_code", Integer),
    Column("signal", Integer),
    Column("completed_event", LargeBinary),
    Column("last_event_sequence", BigInteger, nullable=False),
    UniqueConstraint("tenant", "request_id"),
    CheckConstraint("state IN ('QUEUED', 'RUNNING', 'COMPLETED')", name="state"),
    CheckConstraint("(state = 'COMPLETED') = (outcome IS NOT NULL)", name="outcome"),
    Index(None, "tenant", "admitted_at", "id"),
    Index(None, "tenant", "publisher", "skill", "admitted_at", "id"),
    Index(None, "tenant", "outcome", "admitted_at", "id"),
    Index("ix_executions_unsettled", "instance_id", "id", sqlite_where=_UNSETTLED, postgresql_where=_UNSETTLED),
    Index("ix_executions_open", "tenant", "admitted_at", "id", sqlite_where=_UNSETTLED, postgresql_where=_UNSETTLED),
)

unsettled = executions.c.state != literal_column("'COMPLETED'")
"""Spelled as the two partial indexes are, without a parameter, or they would not serve it."""

execution_labels = Table(
    "execution_labels",
    metadata,
    Column("execution_id", String(64), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("value", Text, nullable=False),
    # The execution's own, so that a page of one label is one walk along this index.
    Column("admitted_at", Instant, nullable=False),
    Index(None, "key", "value", "tenant", "admitted_at", "execution_id"),
)

usage_records = Table(
    "usage_records",
    metadata,
    Column("sequence", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("event_id", String(64), nullable=False, unique=True),
    Column("execution_id", String(64), nullable=False),
    Column("correction_of", String(64), nullable=False),
    Column("tenant", String(128), nullable=False),
    Column("publisher", String(128), nullable=False),
    Column("skill", String(128), nullable=False),
    Column("version", String(128), nullable=False),
    Column("entrypoint", Text, nullable=False),
    Column("isolation", String(16), nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("billable", Boolean, nullable=False),
    Column("ended_at", Instant, nullable=False),
    Column("calls", Integer, nullable=False),
    Column("billed_ms", BigInteger, nullable=False),
    Column("run_ns", BigInteger, nullable=False),
    Column("cpu_ns", BigInteger, nullable=False),
    Column("memory_reserved_byte_ns", Exact, nullable=False),
    Column("egress_in_bytes", BigInteger, nullable=False),
    Column("egress_out_bytes", BigInteger, nullable=False),
    Column("input_bytes", BigInteger, nullable=False),
    Column("output_bytes", BigInteger, nullable=False),
    Column("artifact_bytes", BigInteger, nullable=False),
    # What rating makes of a record and no other column holds; 0 where it isn't billable.
    Column("plan_version", String(128), nullable=False),
    Column("rated_cpu_milli_ns", BigInteger, nullable=False),
    Column("rated_memory_used_byte_ns", Exact, nullable=False),
    Column("rated_memory_larger_byte_ns", Exact, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("previous_hash", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    # One record per execution, whatever the code above does; only corrections may follow it.
    Index(
        "uq_usage_records_execution_id",
        "execution_id",
        unique=True,
        sqlite_where=_ORIGINAL,
        postgresql_where=_ORIGINAL,
    ),
    # A page of each filter that the API has is one walk along one of these.
    Index(None, "tenant", "sequence"),
    Index(None, "publisher", "sequence"),
    Index(None, "publisher", "skill", "sequence"),
    Index(None, "tenant", "publisher", "skill", "sequence"),
    Index(None, "tenant", "ended_at", "sequence"),
    Index(None, "publisher", "ended_at", "sequence"),
    Index(None, "ended_at", "sequence"),
    Index("ix_usage_records_correction_of", "correction_of", sqlite_where=_CORRECTION, postgresql_where=_CORRECTION),
    Index("ix_usage_records_corrected", "execution_id", sqlite_where=_CORRECTION, postgresql_where=_CORRECTION),
)

original = usage_records.c.correction_of == literal_column("''")
"""Not a correction; without a parameter, as the unique partial index is spelled."""

correction = usage_records.c.correction_of != literal_column("''")
"""The others, as their partial indexes are spelled."""

totals = Table(
    "totals",
    metadata,
    Column("tenant", String(128), primary_key=True),
    Column("publisher", String(128), primary_key=True),
    Column("skill", String(128), primary_key=True),
    Column("outcome", String(32), primary_key=True),
    # USAGE or CORRECTION: what is corrected may fall, what was used never does.
    Column("kind", String(16), primary_key=True),
    # The names this row counts under in Prometheus, fixed when it is made: `_other` never changes back.
    Column("series_tenant", String(128), nullable=False),
    Column("series_publisher", String(128), nullable=False),
    Column("series_skill", String(128), nullable=False),
    Column("calls", Exact, nullable=False),
    Column("billed_ms", Exact, nullable=False),
    Column("cpu_ns", Exact, nullable=False),
    Column("memory_reserved_byte_ns", Exact, nullable=False),
    Column("egress_bytes", Exact, nullable=False),
    Column("output_bytes", Exact, nullable=False),
    CheckConstraint("kind IN ('USAGE', 'CORRECTION')", name="kind"),
    Index(None, "series_tenant"),
    Index(None, "series_skill"),
)

ledger_head = Table(
    "ledger_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    CheckConstraint("id = 1", name="single_row"),
)

store_probe = Table(
    "store_probe",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("probed_at", Instant, nullable=False),
    CheckConstraint("id = 1", name="single_row"),
)

tenants = Table(
    "tenants",
    metadata,
    Column("name", Bytewise(128), primary_key=True),
    Column("display_name", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("state_reason", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    # Name of the plan that rates its calls; '' where the gateway's default does.
    Column("rate_plan", String(64), nullable=False),
    # Counts its changes; what an etag is made of.
    Column("revision", BigInteger, nullable=False),
    CheckConstraint("state IN ('ACTIVE', 'SUSPENDED')", name="state"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(128), ForeignKey("tenants.name"), nullable=False, index=True),
    # Of the secret only this is kept; keys carry enough randomness that a plain sha256 can't be guessed.
    Column("secret_sha256", LargeBinary, nullable=False, unique=True),
    Column("description", Text, nullable=False),
    # JSON lists of words.
    Column("roles", Text, nullable=False),
    Column("publishers", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
)
