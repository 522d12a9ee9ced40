"""The tables of billing: who publishes as what, plans, closed periods, why something was corrected.

A row of `rate_plans` never changes; which of a name's versions rates new calls is `rate_plan_names` alone. A row of
`billing_periods` is written once. Amounts are nowhere here: they follow from usage records and plans.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, String, Table, Text
from sqlalchemy import UniqueConstraint as Unique

from skillcell.storage.columns import Bytewise, Instant
from skillcell.storage.metadata import metadata

tenant_publishers = Table(
    "tenant_publishers",
    metadata,
    Column("publisher", String(128), primary_key=True),
    Column("tenant", String(128), ForeignKey("tenants.name"), nullable=False, index=True),
)

rate_plans = Table(
    "rate_plans",
    metadata,
    Column("name", Bytewise(64), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    # The document in canonical JSON; amounts in it are text.
    Column("document", Text, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("created_at", Instant, nullable=False),
    Unique("name", "sha256"),
    Index(None, "created_at", "name", "number"),
)

rate_plan_names = Table(
    "rate_plan_names",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("current_number", Integer, nullable=False),
)

billing_periods = Table(
    "billing_periods",
    metadata,
    # As 2026-11: sorts as time does.
    Column("period", String(7), primary_key=True),
    Column("last_sequence", BigInteger, nullable=False),
    Column("closed_at", Instant, nullable=False),
    Column("closed_by", String(128), nullable=False),
)

period_plans = Table(
    "period_plans",
    metadata,
    # The plan that each tenant had when the period was closed: what its minimum is charged by.
    Column("period", String(7), ForeignKey("billing_periods.period"), primary_key=True),
    Column("tenant", String(128), primary_key=True),
    Column("plan_version", String(128), nullable=False),
)

corrections = Table(
    "corrections",
    metadata,
    Column("event_id", String(64), primary_key=True),
    # Whose request_id it is: that of whoever corrects, not of whoever is billed.
    Column("actor_tenant", String(128), nullable=False),
    # NULL, not '', where there was none: NULLs never collide.
    Column("request_id", String(64)),
    Column("request_hash", LargeBinary, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("created_at", Instant, nullable=False),
    Unique("actor_tenant", "request_id"),
)
