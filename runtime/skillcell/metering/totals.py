"""Running totals by (tenant, publisher, skill, outcome, kind), added up in the same transaction as each record.

The kind keeps what was used apart from what corrections put right, because a counter must never fall and a correction
may take something back.

Each row also fixes the names it counts under in Prometheus when it is made, and they never change: past the bound, new
tenants count under `_other`, and new Skills of a named tenant under that tenant's `_other`. So sums stay right, no
series ever falls, and a bound raised later serves only those who come later.
"""

from __future__ import annotations

from enum import Enum

from sqlalchemy import Connection, bindparam, distinct, func, insert, select, update

from skillcell.core.types import Outcome, UsageRecord
from skillcell.metering.records import Series, Sums
from skillcell.storage.tables import totals

OTHER = "_other"

_SUMS = (
    totals.c.calls,
    totals.c.billed_ms,
    totals.c.cpu_ns,
    totals.c.memory_reserved_byte_ns,
    totals.c.egress_bytes,
    totals.c.output_bytes,
)
_KEY = (
    (totals.c.tenant == bindparam("of_tenant"))
    & (totals.c.publisher == bindparam("of_publisher"))
    & (totals.c.skill == bindparam("of_skill"))
    & (totals.c.outcome == bindparam("of_outcome"))
    & (totals.c.kind == bindparam("of_kind"))
)
_READ = select(*_SUMS).where(_KEY)
_WRITE = update(totals).where(_KEY).values({column: bindparam(f"new_{column.name}") for column in _SUMS})


class Kind(Enum):
    """What a row of the totals adds up."""

    USAGE = "USAGE"
    CORRECTION = "CORRECTION"


def kind_of(record: UsageRecord) -> Kind:
    return Kind.CORRECTION if record.correction_of else Kind.USAGE


def sums_of(record: UsageRecord) -> Sums:
    """What one record adds."""
    return Sums(
        calls=record.calls,
        billed_ms=record.billed_ms,
        cpu_ns=record.cpu_total_ns,
        memory_reserved_byte_ns=record.memory_limit_byte_ns,
        egress_bytes=record.egress_in_bytes + record.egress_out_bytes,
        output_bytes=record.output_bytes,
    )


def plus(left: Sums, right: Sums) -> Sums:
    return Sums(
        left.calls + right.calls,
        left.billed_ms + right.billed_ms,
        left.cpu_ns + right.cpu_ns,
        left.memory_reserved_byte_ns + right.memory_reserved_byte_ns,
        left.egress_bytes + right.egress_bytes,
        left.output_bytes + right.output_bytes,
    )


def add(connection: Connection, record: UsageRecord, max_tenants: int, max_series: int) -> None:
    """Adds a record. Reading, adding in Python and writing is safe, since writers exclude each other."""
    key = {
        "of_tenant": record.tenant,
        "of_publisher": record.publisher,
        "of_skill": record.skill,
        "of_outcome": record.outcome.value,
        "of_kind": kind_of(record).value,
    }
    row = connection.execute(_READ, key).one_or_none()
    more = sums_of(record)
    if row is not None:
        values = _values(plus(Sums(*row), more))
        connection.execute(_WRITE, key | {f"new_{name}": value for name, value in values.items()})
        return
    tenant, publisher, skill = _series(connection, record, max_tenants, max_series)
    connection.execute(
        insert(totals),
        {
            "tenant": record.tenant,
            "publisher": record.publisher,
            "skill": record.skill,
            "outcome": record.outcome.value,
            "kind": kind_of(record).value,
            "series_tenant": tenant,
            "series_publisher": publisher,
            "series_skill": skill,
            **_values(more),
        },
    )


def series(connection: Connection, kind: Kind) -> tuple[Series, ...]:
    """All totals of a kind, merged under the names they count under, in the order of those names."""
    columns = totals.c
    names = (columns.series_tenant, columns.series_publisher, columns.series_skill, columns.outcome)
    merged: dict[tuple[str, ...], Sums] = {}
    for row in connection.execute(select(*names, *_SUMS).where(columns.kind == kind.value)):
        key, more = tuple(row[:4]), Sums(*(int(value) for value in row[4:]))
        merged[key] = plus(merged[key], more) if key in merged else more
    return tuple(
        Series(tenant, publisher, skill, Outcome(outcome), sums)
        for (tenant, publisher, skill, outcome), sums in sorted(merged.items(), key=lambda item: item[0])
    )


def _values(sums: Sums) -> dict[str, int]:
    return {
        "calls": sums.calls,
        "billed_ms": sums.billed_ms,
        "cpu_ns": sums.cpu_ns,
        "memory_reserved_byte_ns": sums.memory_reserved_byte_ns,
        "egress_bytes": sums.egress_bytes,
        "output_bytes": sums.output_bytes,
    }


def _series(connection: Connection, record: UsageRecord, max_tenants: int, max_series: int) -> tuple[str, str, str]:
    """The names of a new row: as its siblings of other outcomes have them, else by what room is left."""
    columns = totals.c
    names = select(columns.series_tenant, columns.series_publisher, columns.series_skill)
    of_tenant = columns.tenant == record.tenant
    of_skill = of_tenant & (columns.publisher == record.publisher) & (columns.skill == record.skill)
    sibling = connection.execute(names.where(of_skill).limit(1)).one_or_none()
    if sibling is not None:
        return sibling.series_tenant, sibling.series_publisher, sibling.series_skill
    known = connection.execute(select(columns.series_tenant).where(of_tenant).limit(1)).scalar_one_or_none()
    if known is None:
        named = columns.series_tenant != OTHER
        taken = connection.execute(select(func.count(distinct(columns.series_tenant))).where(named)).scalar_one()
        known = record.tenant if taken < max_tenants else OTHER
    if known == OTHER:
        return OTHER, OTHER, OTHER
    named_skills = select(columns.tenant, columns.publisher, columns.skill).where(columns.series_skill != OTHER)
    taken = connection.execute(select(func.count()).select_from(named_skills.distinct().subquery())).scalar_one()
    if taken < max_series:
        return known, record.publisher, record.skill
    return known, OTHER, OTHER
