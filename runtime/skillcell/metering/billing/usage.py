"""Usage of one billing period, added up by the database: what a statement is rated from.

The columns that are summed are those that rating itself made of each record (`rows.record_values`), and verification
compares them with the record's bytes; so a statement of a million records reads none of them one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, and_, func, not_, select, type_coerce
from sqlalchemy.sql.expression import literal_column

from skillcell.core.periods import Span
from skillcell.metering.rating.quantities import UsageKey, UsageSums
from skillcell.storage.columns import exact_sum, from_microseconds
from skillcell.storage.tables import usage_records

_COLUMNS = usage_records.c
_DAY_US = 24 * 3_600_000_000
_SUMS = (
    func.sum(_COLUMNS.calls),
    func.sum(_COLUMNS.billed_ms),
    exact_sum(_COLUMNS.rated_cpu_milli_ns),
    exact_sum(_COLUMNS.memory_reserved_byte_ns),
    exact_sum(_COLUMNS.rated_memory_used_byte_ns),
    exact_sum(_COLUMNS.rated_memory_larger_byte_ns),
    func.sum(_COLUMNS.egress_in_bytes + _COLUMNS.egress_out_bytes),
    func.sum(_COLUMNS.output_bytes + _COLUMNS.artifact_bytes),
)
_COARSE = (_COLUMNS.tenant, _COLUMNS.plan_version, _COLUMNS.publisher, _COLUMNS.skill)


def usage_sums(
    connection: Connection, span: Span, tenant: str | None = None, *, fine: bool = False
) -> dict[UsageKey, UsageSums]:
    """Billable usage of the records that belong to a span; of one tenant, or of all.

    `fine` tells apart version, outcome, day and corrections of earlier months besides, as exports do (`key_of`).
    """
    keys: tuple[ColumnElement[Any], ...] = _COARSE
    if fine:
        # No bound parameter: the same expression must be recognised in SELECT and GROUP BY.
        day = type_coerce(_COLUMNS.ended_at, BigInteger) // literal_column(str(_DAY_US), BigInteger)
        keys = (*_COARSE, _COLUMNS.version, _COLUMNS.outcome, day)
    found: dict[UsageKey, UsageSums] = {}
    for condition, corrects in product(_parts(span), (False, True) if fine else (False,)):
        query = select(*keys, *_SUMS).where(_COLUMNS.billable, *condition).group_by(*keys)
        if tenant is not None:
            query = query.where(_COLUMNS.tenant == tenant)
        if fine:
            query = query.where(_corrects_earlier(span) if corrects else not_(_corrects_earlier(span)))
        for row in connection.execute(query):
            key = UsageKey(*row[:4], *(_fine(*row[4:7], corrects) if fine else ()))
            sums = UsageSums(*(int(value or 0) for value in row[len(keys) :]))
            found[key] = found.get(key, UsageSums()) + sums
    return found


def _parts(span: Span) -> Iterator[list[ColumnElement[bool]]]:
    """The records of the months themselves, then the late ones: two walks along two indexes."""
    sequence, ends = _COLUMNS.sequence, _COLUMNS.ended_at
    upto = [] if span.last_sequence is None else [sequence <= span.last_sequence]
    yield [ends >= span.start, ends < span.end, *upto]
    if span.late_after is not None:
        yield [sequence > span.late_after, ends < span.start, *upto]


def _corrects_earlier(span: Span) -> ColumnElement[bool]:
    """Whether a record corrects one that ended before the span: within it, a correction is usage like any other."""
    corrected = usage_records.alias()
    earlier = select(1).where(corrected.c.event_id == _COLUMNS.correction_of, corrected.c.ended_at < span.start)
    return and_(_COLUMNS.correction_of != literal_column("''"), earlier.exists())


def _fine(version: str, outcome: str, day: int, corrects: bool) -> tuple[str, str, str, bool]:
    return version, outcome, from_microseconds(int(day) * _DAY_US).date().isoformat(), corrects
