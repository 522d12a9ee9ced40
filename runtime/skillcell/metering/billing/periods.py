"""Closing billing periods, for good.

What a reader could get wrong: closing moves nothing. It writes down which record was the last one, and from then on
`core/periods.py` sends whatever is settled later to the period that is open, whenever it ended.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, Row, func, insert, select
from sqlalchemy.sql.elements import ColumnElement

from skillcell.core.errors import precondition
from skillcell.core.periods import ClosedPeriod, Period, Span, span_of
from skillcell.metering.billing.plans import plans_in_force
from skillcell.storage.tables import usage_records
from skillcell.storage.tables_billing import billing_periods, period_plans

_COLUMNS = usage_records.c
_UNKEYED_SEQUENCE: ColumnElement[int] = _COLUMNS.sequence + 0
"""Keeps SQLite from walking the wide rows where the index of (ended_at, sequence) holds all that is asked."""


def closed_periods(connection: Connection) -> tuple[ClosedPeriod, ...]:
    """In the order of time."""
    found = connection.execute(select(billing_periods).order_by(billing_periods.c.period))
    return tuple(_closed(row) for row in found)


def close(connection: Connection, period: Period, now: datetime, actor: str, default_plan: str) -> ClosedPeriod:
    """Closes a period that is over; one that is closed already stays as it is.

    FAILED_PRECONDITION `WRONG_STATE` while it is not over, or usage of an earlier one is still to be closed.
    """
    closed = closed_periods(connection)
    for one in closed:
        if one.period == period:
            return one
        if one.period > period:
            return ClosedPeriod(period, 0, one.closed_at)
    if now < period.end:
        raise precondition(
            "WRONG_STATE",
            f"period: {period} is not over before {period.end:%Y-%m-%dT%H:%M:%SZ}; close it then",
            period=str(period),
        )
    earlier = _earliest_open_usage(connection, closed)
    if earlier is not None and earlier < period:
        raise precondition(
            "WRONG_STATE",
            f"period: {earlier} has usage and is still open; close it before {period}",
            period=str(earlier),
        )
    made = ClosedPeriod(period, _last_sequence(connection, span_of(period, closed), closed), now)
    connection.execute(
        insert(billing_periods),
        {"period": str(period), "last_sequence": made.last_sequence, "closed_at": now, "closed_by": actor},
    )
    in_force = plans_in_force(connection, default_plan, period.end)
    if in_force:
        connection.execute(
            insert(period_plans),
            [
                {"period": str(period), "tenant": tenant, "plan_version": version}
                for tenant, version in sorted(in_force.items())
            ],
        )
    return made


def plan_at_close(connection: Connection, period: Period, tenant: str) -> str:
    """The version that a tenant had when the period was closed; empty where it had none."""
    columns = period_plans.c
    query = select(columns.plan_version).where(columns.period == str(period), columns.tenant == tenant)
    return str(connection.execute(query).scalar_one_or_none() or "")


def plans_at_close(connection: Connection, period: Period) -> dict[str, str]:
    """The same of every tenant that had one."""
    columns = period_plans.c
    query = select(columns.tenant, columns.plan_version).where(columns.period == str(period))
    return {str(tenant): str(version) for tenant, version in connection.execute(query)}


def _earliest_open_usage(connection: Connection, closed: tuple[ClosedPeriod, ...]) -> Period | None:
    """The first period that has usage and is not closed."""
    ends = _COLUMNS.ended_at
    first = select(func.min(ends))
    if closed:
        last = closed[-1]
        first = first.where(ends >= last.period.end)
        late = select(_COLUMNS.sequence).where(ends < last.period.end, last.last_sequence < _UNKEYED_SEQUENCE)
        if connection.execute(late.limit(1)).scalar_one_or_none() is not None:
            return last.period.next
    found = connection.execute(first).scalar_one_or_none()
    return None if found is None else Period.of(found)


def _last_sequence(connection: Connection, span: Span, closed: tuple[ClosedPeriod, ...]) -> int:
    ends = _COLUMNS.ended_at
    found = [closed[-1].last_sequence if closed else 0]
    own = select(func.max(_UNKEYED_SEQUENCE)).where(ends >= span.start, ends < span.end)
    found.append(connection.execute(own).scalar_one_or_none() or 0)
    if span.late_after is not None:
        late = select(func.max(_UNKEYED_SEQUENCE)).where(ends < span.start, span.late_after < _UNKEYED_SEQUENCE)
        found.append(connection.execute(late).scalar_one_or_none() or 0)
    return max(found)


def _closed(row: Row[tuple[object, ...]]) -> ClosedPeriod:
    return ClosedPeriod(Period.parse(row.period), row.last_sequence, row.closed_at.astimezone(UTC))
