"""What running calls have used so far: one row for each that has lasted, gone with its settlement.

Not the truth of anything: a record is settled from what the sandbox tells at its end. These rows are what is left when
gateway and machine died together.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, String, Table, Text

from skillcell.storage.columns import Instant
from skillcell.storage.metadata import metadata

running = Table(
    "running",
    metadata,
    Column("execution_id", String(64), primary_key=True),
    Column("sandbox_id", String(64), nullable=False),
    Column("boot_id", String(64), nullable=False),
    Column("started_at", Instant, nullable=False),
    # On the monotonic clock of that boot, nanoseconds.
    Column("began_ns", BigInteger, nullable=False),
    Column("seen_ns", BigInteger, nullable=False),
    Column("queue_ns", BigInteger, nullable=False),
    Column("startup_ns", BigInteger, nullable=False),
    Column("deliver_ns", BigInteger, nullable=False),
    Column("output_bytes", BigInteger, nullable=False),
    # JSON objects of the kernel's counters.
    Column("at_lease", Text, nullable=False),
    Column("latest", Text, nullable=False),
)
