"""Questions to the store: executions by page, records by cursor, usage by group.

Each takes the tenant whose rows may be seen, or None for somebody who may see all (a biller). Pages go by key, never by
offset, so that the millionth row costs what the first does, and rows that arrive meanwhile neither repeat nor hide any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Row,
    Select,
    and_,
    case,
    exists,
    func,
    literal_column,
    or_,
    select,
    type_coerce,
)

from skillcell.core.errors import invalid
from skillcell.core.records import StoredExecution
from skillcell.core.types import ExecutionState, Outcome, UsageRecord
from skillcell.metering import rows
from skillcell.metering.narrowing import narrowed, of_executions, unindexed
from skillcell.metering.records import Bucket, ExecutionFilter, ExecutionPage, Grouping, Sums, UsageFilter, UsageGroup
from skillcell.storage import tables
from skillcell.storage.columns import exact_sum, from_microseconds, to_microseconds
from skillcell.storage.pages import decode_token, encode_token, fingerprint
from skillcell.storage.tables import execution_labels, executions, usage_records

_HOUR_US = 3_600_000_000
_DAY_US = 24 * _HOUR_US
_GROUPS = ("tenant", "publisher", "skill", "version", "entrypoint", "outcome", "isolation")


def find_execution(connection: Connection, tenant: str | None, execution_id: str) -> StoredExecution | None:
    """An execution, if the tenant may see it."""
    query = select(executions).where(executions.c.id == execution_id)
    row = connection.execute(_scoped(query, executions.c.tenant, tenant)).one_or_none()
    if row is None:
        return None
    return rows.stored_execution(row, rows.labels_of(connection, [execution_id]).get(execution_id, {}))


def page_of_executions(
    connection: Connection, tenant: str | None, wanted: ExecutionFilter, page_size: int, page_token: str
) -> ExecutionPage:
    """Newest first by time of admission."""
    question = fingerprint("executions", tenant, wanted.states, wanted.outcomes, wanted.publisher, wanted.skill,
                           wanted.version, wanted.digest, sorted(wanted.labels.items()),
                           wanted.since, wanted.until)  # fmt: skip
    last = None
    if page_token:
        last_at, last_id = decode_token(page_token, question, int, str)
        last = _instant_of_token(int(last_at)), str(last_id)
    # One walk for each outcome, merged: of several at once no index gives the newest first.
    found: list[Row[Any]] = []
    for outcome in wanted.outcomes or (None,):
        query, at, identity = _question(tenant, wanted, outcome)
        if last is not None:
            # Redundant on purpose: the first condition is the one that an index can begin at.
            query = query.where(at <= last[0], or_(at < last[0], identity < last[1]))
        found += connection.execute(query.order_by(at.desc(), identity.desc()).limit(page_size + 1)).all()
    found = sorted(found, key=lambda row: (row.admitted_at, row.id), reverse=True)[: page_size + 1]
    labels = rows.labels_of(connection, [row.id for row in found])
    page = found[:page_size]
    token = ""
    if len(found) > page_size:
        token = encode_token(question, to_microseconds(page[-1].admitted_at), page[-1].id)
    return ExecutionPage(tuple(rows.stored_execution(row, labels.get(row.id, {})) for row in page), token)


def _instant_of_token(value: int) -> datetime:
    """The time of a page token, whose number may be anybody's invention."""
    try:
        return from_microseconds(value)
    except OverflowError as error:
        raise invalid("page_token", "is not a token of this service", reason="PAGE_TOKEN_INVALID") from error


def unsettled(connection: Connection, instance_id: str | None) -> tuple[StoredExecution, ...]:
    """What was admitted and never ended, oldest first; of one gateway, or of all."""
    columns = executions.c
    query = select(executions).where(tables.unsettled).order_by(columns.id)
    if instance_id is not None:
        query = query.where(columns.instance_id == instance_id)
    found = connection.execute(query).all()
    labels = rows.labels_of(connection, [row.id for row in found])
    return tuple(rows.stored_execution(row, labels.get(row.id, {})) for row in found)


def records_after(
    connection: Connection, tenant: str | None, after_sequence: int, limit: int, wanted: UsageFilter | None = None
) -> tuple[UsageRecord, ...]:
    """In the order of the chain. A tenant's own records have gaps in their sequences, the whole ledger has none."""
    chosen = wanted or UsageFilter()
    narrow = narrowed(connection, tenant, chosen, after_sequence)
    if narrow is None:
        return ()
    columns = usage_records.c
    column = unindexed if narrow.looked_up else _as_it_is
    named = _of_usage(replace(chosen, since=None, until=None, execution_id=""), column)
    query = select(usage_records).where(*named, *narrow.conditions).order_by(narrow.order).limit(limit)
    found = connection.execute(_scoped(query, column(columns.tenant), tenant)).all()
    labels = rows.labels_of(connection, {row.execution_id for row in found})
    return tuple(rows.usage_record(row, labels.get(row.execution_id, {})) for row in found)


def summary(connection: Connection, tenant: str | None, grouping: Grouping) -> tuple[UsageGroup, ...]:
    """Sums by group, in the order of their keys."""
    unknown = [name for name in grouping.by if name not in _GROUPS]
    if unknown:
        raise invalid("group_by", f"{unknown[0]!r} is unknown; known are {', '.join(_GROUPS)}")
    columns = usage_records.c
    keys: list[ColumnElement[Any]] = [columns[name] for name in grouping.by]
    source: FromClause = usage_records
    for number, label in enumerate(grouping.labels):
        table = execution_labels.alias(f"group_{number}")
        source = source.outerjoin(table, and_(table.c.execution_id == columns.execution_id, table.c.key == label))
        keys.append(func.coalesce(table.c.value, literal_column("''")))
    query = select().select_from(source)
    if grouping.bucket is not None:
        keys.append(_bucket(grouping.bucket))
    billable = and_(columns.correction_of == "", columns.billable)
    query = query.add_columns(
        *keys,
        func.sum(case((columns.correction_of == "", 1), else_=0)),
        func.sum(columns.billed_ms),
        # Nanoseconds of a large ledger leave 64 bits, and SQLite's own sum would then fail.
        exact_sum(columns.cpu_ns),
        exact_sum(columns.memory_reserved_byte_ns),
        func.sum(columns.egress_in_bytes + columns.egress_out_bytes),
        func.sum(columns.output_bytes),
        func.sum(case((billable, 1), else_=0)),
        exact_sum(case((billable, columns.run_ns), else_=0)),
        func.sum(columns.egress_in_bytes),
        func.sum(columns.egress_out_bytes),
        func.sum(columns.input_bytes),
        func.sum(columns.artifact_bytes),
    )
    if grouping.as_of_sequence:
        query = query.where(columns.sequence <= grouping.as_of_sequence)
    if grouping.since is not None:
        query = query.where(columns.ended_at >= grouping.since)
    if grouping.until is not None:
        query = query.where(columns.ended_at < grouping.until)
    query = query.where(*_of_usage(grouping.where))
    query = _scoped(query, columns.tenant, tenant).group_by(*keys)
    return _groups(connection.execute(query).all(), grouping)


def _groups(found: Sequence[Row[Any]], grouping: Grouping) -> tuple[UsageGroup, ...]:
    """Days are merged into months here, since no two databases cut months alike."""
    groups: dict[tuple[datetime | None, tuple[str, ...]], tuple[int, ...]] = {}
    named = len(grouping.by) + len(grouping.labels)
    bucketed = grouping.bucket is not None
    for row in found:
        start = _bucket_start(grouping.bucket, int(row[named])) if grouping.bucket is not None else None
        amounts = tuple(int(value or 0) for value in row[named + bucketed :])
        key = (start, tuple(str(value) for value in row[:named]))
        before = groups.get(key)
        groups[key] = tuple(map(int.__add__, before, amounts)) if before else amounts
    names = (*grouping.by, *(f"label:{label}" for label in grouping.labels))
    if not names and not bucketed and not any(groups.get((None, ()), ())):
        return ()
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] or datetime.min.replace(tzinfo=UTC), item[0][1]))
    return tuple(
        UsageGroup(dict(zip(names, key, strict=True)), start, Sums(*amounts[:6]), *amounts[6:])
        for (start, key), amounts in ordered
    )


def _bucket(bucket: Bucket) -> ColumnElement[Any]:
    # No bound parameter: the same expression must be recognised in SELECT and GROUP BY.
    width = _HOUR_US if bucket is Bucket.HOUR else _DAY_US
    return type_coerce(usage_records.c.ended_at, BigInteger) // literal_column(str(width), BigInteger)


def _bucket_start(bucket: Bucket, number: int) -> datetime:
    start = from_microseconds(number * (_HOUR_US if bucket is Bucket.HOUR else _DAY_US))
    return start.replace(day=1) if bucket is Bucket.MONTH else start


def bucket_end(bucket: Bucket, start: datetime) -> datetime:
    """The first instant that no longer belongs to a bucket."""
    if bucket is Bucket.HOUR:
        return start + timedelta(hours=1)
    if bucket is Bucket.DAY:
        return start + timedelta(days=1)
    return (start + timedelta(days=31)).replace(day=1)


def _question(
    tenant: str | None, wanted: ExecutionFilter, outcome: Outcome | None
) -> tuple[Select[Any], ColumnElement[datetime], ColumnElement[str]]:
    """The filtered query, and the columns it pages by: the first label's own where there is one, since a walk along
    that index finds a rare label as fast as a common one."""
    columns = executions.c
    query, at, identity = select(executions), columns.admitted_at, columns.id
    for number, (key, value) in enumerate(sorted(wanted.labels.items())):
        labels = execution_labels.alias(f"label_{number}").c
        same = and_(labels.key == key, labels.value == value)
        if number == 0:
            query = query.join(labels.execution_id.table, labels.execution_id == columns.id).where(same)
            query, at, identity = _scoped(query, labels.tenant, tenant), labels.admitted_at, labels.execution_id
        else:
            query = query.where(exists().where(labels.execution_id == columns.id, same))
    if wanted.states:
        query = query.where(columns.state.in_([state.value for state in wanted.states]))
        if ExecutionState.COMPLETED not in wanted.states:
            query = query.where(tables.unsettled)
    if outcome is not None:
        query = query.where(columns.outcome == outcome.value)
    if wanted.publisher:
        query = query.where(columns.publisher == wanted.publisher)
    if wanted.skill:
        query = query.where(columns.skill == wanted.skill)
    if wanted.version:
        query = query.where(columns.version == wanted.version)
    if wanted.digest:
        query = query.where(columns.digest == wanted.digest)
    if wanted.since is not None:
        query = query.where(at >= wanted.since)
    if wanted.until is not None:
        query = query.where(at < wanted.until)
    return _scoped(query, columns.tenant, tenant), at, identity


def _as_it_is(column: ColumnElement[str]) -> ColumnElement[str]:
    return column


def _of_usage(
    wanted: UsageFilter, column: Callable[[ColumnElement[str]], ColumnElement[str]] = _as_it_is
) -> list[ColumnElement[bool]]:
    columns = usage_records.c
    conditions: list[ColumnElement[bool]] = [
        column(columns[name]) == getattr(wanted, name)
        for name in ("tenant", "publisher", "skill")
        if getattr(wanted, name)
    ]
    if wanted.execution_id:
        conditions.append(of_executions([wanted.execution_id]))
    if wanted.outcomes:
        conditions.append(columns.outcome.in_([outcome.value for outcome in wanted.outcomes]))
    if wanted.since is not None:
        conditions.append(columns.ended_at >= wanted.since)
    if wanted.until is not None:
        conditions.append(columns.ended_at < wanted.until)
    labels = execution_labels.c
    for key, value in wanted.labels.items():
        same = and_(labels.execution_id == columns.execution_id, labels.key == key, labels.value == value)
        conditions.append(exists().where(same))
    return conditions


def _scoped(query: Select[Any], column: ColumnElement[str], tenant: str | None) -> Select[Any]:
    return query if tenant is None else query.where(column == tenant)
