"""Where in the ledger the records of a filter can lie, so that a page costs what it holds, not what the ledger holds.

Pages go by sequence, and most filters are one walk along an index that has it. These are not: a span of time, whose
records lie close together though not in one piece, since clocks step; a label, of which few or many records may be;
and one execution's record with its corrections. What a reader could get wrong: each narrows, none decides. The
conditions of the filter itself stand beside, but for the span of time, which is spelled here so that no planner takes
its index and sorts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, func, or_, select, type_coerce

from skillcell.metering.records import UsageFilter
from skillcell.storage.columns import to_microseconds
from skillcell.storage.tables import correction, execution_labels, original, usage_records

_FEW = 1000
"""Executions that have a label: up to this many are looked up one by one, of more the ledger is walked along."""
_sequence = usage_records.c.sequence


@dataclass(frozen=True, slots=True)
class Narrowed:
    """Conditions besides the filter's own, and what to order by."""

    conditions: tuple[ColumnElement[bool], ...]
    order: ColumnElement[Any]
    looked_up: bool = False
    """Whether single executions are looked up: then no other condition may tempt a planner to another index."""


def of_executions(execution_ids: Sequence[str]) -> ColumnElement[bool]:
    """Their records and the corrections of those: one index has the ones, another the others."""
    same = usage_records.c.execution_id.in_(execution_ids)
    return or_(same & original, same & correction)


def unindexed(column: ColumnElement[str]) -> ColumnElement[str]:
    """The same text, which no index has."""
    return column.concat("")


def narrowed(connection: Connection, tenant: str | None, wanted: UsageFilter, after: int) -> Narrowed | None:
    """None where nothing fits at all."""
    within = _within(wanted)
    found = [wanted.execution_id] if wanted.execution_id else _labelled(connection, tenant, wanted)
    if found is not None:
        # By an expression, so that the order is no reason to walk along all the ledger.
        place = _sequence + 0
        return Narrowed((of_executions(found), place > after, *within), place, looked_up=True) if found else None
    if not within:
        return Narrowed((_sequence > after,), _sequence)
    first, last = _ends(connection, tenant or wanted.tenant, wanted, after)
    if first is None:
        return None
    return Narrowed((_sequence >= first, _sequence <= last, *within), _sequence)


def _within(wanted: UsageFilter) -> tuple[ColumnElement[bool], ...]:
    ended = type_coerce(usage_records.c.ended_at, BigInteger) + 0
    return (
        *((ended >= to_microseconds(wanted.since),) if wanted.since is not None else ()),
        *((ended < to_microseconds(wanted.until),) if wanted.until is not None else ()),
    )


def _ends(connection: Connection, tenant: str | None, wanted: UsageFilter, after: int) -> tuple[int | None, int]:
    """The first and the last record of a span of time, read from an index alone."""
    columns = usage_records.c
    query = select(func.min(_sequence + 0), func.max(_sequence + 0)).where(_sequence + 0 > after)
    if wanted.since is not None:
        query = query.where(columns.ended_at >= wanted.since)
    if wanted.until is not None:
        query = query.where(columns.ended_at < wanted.until)
    if tenant:
        query = query.where(columns.tenant == tenant)
    first, last = connection.execute(query).one()
    return first, last or 0


def _labelled(connection: Connection, tenant: str | None, wanted: UsageFilter) -> list[str] | None:
    """The executions of the first label that few have; None where each is had by many."""
    labels = execution_labels.c
    for key, value in sorted(wanted.labels.items()):
        query = select(labels.execution_id).where(labels.key == key, labels.value == value)
        if tenant or wanted.tenant:
            query = query.where(labels.tenant == (tenant or wanted.tenant))
        found = connection.execute(query.limit(_FEW + 1)).scalars().all()
        if len(found) <= _FEW:
            return list(found)
    return None
