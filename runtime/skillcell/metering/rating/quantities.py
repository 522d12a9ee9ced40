"""What records add up to: integers as long as they are added, decimals once they are priced.

Sums don't depend on the order of the records, nor on how they were batched. Every conversion is exact: a power of two
divides into a finite decimal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from skillcell.core.rate_plans import RateMeter
from skillcell.core.types import Limits, Measurement, UsageRecord
from skillcell.metering.rating.money import exact
from skillcell.metering.usage import billed_milliseconds

UNITS: Mapping[RateMeter, str] = {
    RateMeter.CALLS: "Requests",
    RateMeter.BILLED_SECONDS: "Seconds",
    RateMeter.CPU_SECONDS: "Core-Seconds",
    RateMeter.MEMORY_RESERVED_GIB_SECONDS: "GiB-Seconds",
    RateMeter.MEMORY_USED_GIB_SECONDS: "GiB-Seconds",
    RateMeter.MEMORY_LARGER_GIB_SECONDS: "GiB-Seconds",
    RateMeter.EGRESS_BYTES: "Bytes",
    RateMeter.OUTPUT_BYTES: "Bytes",
}
_PER_GIB = Decimal(5**30).scaleb(-30)
"""2^-30, exactly: `scaleb` moves the point and rounds nothing that fits 28 digits, and 5^30 has 21."""

_LATE_NS = 250_000_000
"""Two periods of the kernel's CPU bandwidth control, and one look at the counters."""


@dataclass(frozen=True, slots=True)
class UsageSums:
    """Billable usage, added up."""

    calls: int = 0
    billed_ms: int = 0
    cpu_milli_ns: int = 0
    """Thousandths of a nanosecond of one core: granted cores come in thousandths."""
    memory_reserved_byte_ns: int = 0
    memory_used_byte_ns: int = 0
    memory_larger_byte_ns: int = 0
    egress_bytes: int = 0
    output_bytes: int = 0

    def __add__(self, other: UsageSums) -> UsageSums:
        return UsageSums(
            self.calls + other.calls,
            self.billed_ms + other.billed_ms,
            self.cpu_milli_ns + other.cpu_milli_ns,
            self.memory_reserved_byte_ns + other.memory_reserved_byte_ns,
            self.memory_used_byte_ns + other.memory_used_byte_ns,
            self.memory_larger_byte_ns + other.memory_larger_byte_ns,
            self.egress_bytes + other.egress_bytes,
            self.output_bytes + other.output_bytes,
        )


@dataclass(frozen=True, slots=True, order=True)
class UsageKey:
    """Whose usage it is, and what rates it. Statements need the first four; the rest tells rows of an export apart."""

    tenant: str
    plan_version: str
    """Pinned at admission; empty: not rated."""
    publisher: str
    skill: str
    """Name without the publisher."""
    version: str = ""
    outcome: str = ""
    day: str = ""
    """`2026-11-22`, UTC, by the record's end."""
    correction: bool = False
    """Of a call of an earlier month."""
    tags: str = ""
    """Labels as a JSON object, keys sorted; empty: none, or not told apart."""

    def coarse(self) -> UsageKey:
        """What of it a statement tells apart."""
        return UsageKey(self.tenant, self.plan_version, self.publisher, self.skill)


def coarse_key_of(record: UsageRecord) -> UsageKey:
    """What a statement tells apart."""
    return UsageKey(record.tenant, record.plan_version, record.publisher, record.skill)


def key_of(record: UsageRecord) -> UsageKey:
    """What an export tells apart, besides labels: as many keys as Skill versions, outcomes and days."""
    return UsageKey(
        tenant=record.tenant,
        plan_version=record.plan_version,
        publisher=record.publisher,
        skill=record.skill,
        version=record.version,
        outcome=record.outcome.value,
        day=record.ended_at.date().isoformat(),
        correction=bool(record.correction_of) and _month(record.admitted_at) != _month(record.ended_at),
    )


def tagged_key_of(record: UsageRecord) -> UsageKey:
    """The finest key, labels included: a label that is different in each call makes a key of each call."""
    tags = json.dumps(dict(record.labels), sort_keys=True, ensure_ascii=False) if record.labels else ""
    return replace(key_of(record), tags=tags)


def _month(instant: datetime) -> tuple[int, int]:
    return instant.year, instant.month


def sums_of(record: UsageRecord) -> UsageSums:
    """What of one record is billed: nothing, when it isn't billable.

    CPU that was not measured exactly is billed as granted: cores × run time. A correction's differences count as they
    are. What it does to the larger of two memory figures is the change of the granted one, which bounds the used one;
    where both change the same way it is the greater change, so that taking all of a record back leaves nothing of it.
    """
    if not record.billable:
        return UsageSums()
    reserved, used = record.memory_limit_byte_ns, record.memory_used_byte_ns
    as_measured = bool(record.correction_of) or record.measurement is Measurement.EXACT
    return UsageSums(
        calls=record.calls,
        billed_ms=record.billed_ms,
        cpu_milli_ns=record.cpu_total_ns * 1000 if as_measured else record.milli_cpus * record.times.run_ns,
        memory_reserved_byte_ns=reserved,
        memory_used_byte_ns=used,
        memory_larger_byte_ns=_larger_change(reserved, used) if record.correction_of else max(reserved, used),
        egress_bytes=record.egress_in_bytes + record.egress_out_bytes,
        output_bytes=record.output_bytes + record.artifact_bytes,
    )


def _larger_change(reserved: int, used: int) -> int:
    return max(reserved, used, key=abs) if reserved * used > 0 else reserved


def collect(
    records: Iterable[UsageRecord],
    into: dict[UsageKey, UsageSums] | None = None,
    key: Callable[[UsageRecord], UsageKey] = coarse_key_of,
) -> dict[UsageKey, UsageSums]:
    """Sums by key; what isn't billable counts as nothing. Batches add up: one's result is the next one's `into`."""
    sums = {} if into is None else into
    for record in records:
        of = key(record)
        sums[of] = sums.get(of, UsageSums()) + sums_of(record)
    return sums


def most_of(limits: Limits) -> UsageSums:
    """One call that uses up every limit: CPU as it would be billed in the worst case, measured or granted.

    Time and bytes are never billed beyond their limits (`settlement.py`). Measured CPU is what the kernel says, and a
    call that is stopped for it has used a little more by then: all its cores for `_LATE_NS`.
    """
    memory = limits.memory_bytes * limits.wall_ns
    return UsageSums(
        calls=1,
        billed_ms=billed_milliseconds(limits.wall_ns),
        cpu_milli_ns=max(limits.cpu_ns * 1000, limits.milli_cpus * limits.wall_ns) + limits.milli_cpus * _LATE_NS,
        memory_reserved_byte_ns=memory,
        memory_used_byte_ns=memory,
        memory_larger_byte_ns=memory,
        egress_bytes=limits.egress_bytes,
        output_bytes=limits.output_bytes + limits.artifact_bytes,
    )


def quantity(meter: RateMeter, sums: UsageSums) -> Decimal:
    """In the meter's unit, exactly."""
    with exact():
        match meter:
            case RateMeter.CALLS:
                return Decimal(sums.calls)
            case RateMeter.BILLED_SECONDS:
                return Decimal(sums.billed_ms).scaleb(-3)
            case RateMeter.CPU_SECONDS:
                return Decimal(sums.cpu_milli_ns).scaleb(-12)
            case RateMeter.MEMORY_RESERVED_GIB_SECONDS:
                return _gib_seconds(sums.memory_reserved_byte_ns)
            case RateMeter.MEMORY_USED_GIB_SECONDS:
                return _gib_seconds(sums.memory_used_byte_ns)
            case RateMeter.MEMORY_LARGER_GIB_SECONDS:
                return _gib_seconds(sums.memory_larger_byte_ns)
            case RateMeter.EGRESS_BYTES:
                return Decimal(sums.egress_bytes)
            case RateMeter.OUTPUT_BYTES:
                return Decimal(sums.output_bytes)


def _gib_seconds(byte_ns: int) -> Decimal:
    return (Decimal(byte_ns) * _PER_GIB).scaleb(-9)
