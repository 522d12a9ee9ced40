"""The two transactions of every call: ADMIT before it may run, SETTLE after it ended.

Both are functions of a Connection, so that the ledger decides when they run and what they share a commit with. Writers
exclude each other on every store (see `storage/engines.py`): looking first and then writing can't be raced; the unique
constraints below are the second lock on the same door. Statements are built once, since building one costs more than
running it and every call pays for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, literal, select, update

from skillcell.core.errors import Fault, FaultKind
from skillcell.core.records import Admission, StoredExecution
from skillcell.core.types import ExecutionState, UsageRecord
from skillcell.metering import checkpoints, rows, totals
from skillcell.metering.canonical import GENESIS, canonical, chain_hash
from skillcell.metering.defects import Defect, Problem, ledger_broken
from skillcell.metering.records import AdmitResult, Head, Settlement
from skillcell.storage.tables import execution_labels, executions, ledger_head, usage_records

_ADMIT = insert(executions)
_LABEL = insert(execution_labels)
_RECORD = insert(usage_records)
_WITHDRAW = delete(executions).where(
    executions.c.id == bindparam("of_id"), executions.c.state == literal(ExecutionState.QUEUED.value)
)
_UNLABEL = delete(execution_labels).where(execution_labels.c.execution_id == bindparam("of_id"))
_HEAD = select(ledger_head.c.sequence, ledger_head.c.hash)
_NEWEST = select(func.max(usage_records.c.sequence)).scalar_subquery()
_ENDS = select(ledger_head.c.sequence, ledger_head.c.hash, usage_records.c.sequence, usage_records.c.hash).select_from(
    ledger_head.outerjoin(usage_records, usage_records.c.sequence == _NEWEST)
)
_SET_HEAD = update(ledger_head).values(sequence=bindparam("new_sequence"), hash=bindparam("new_hash"))
_OF_REQUEST = select(executions).where(
    executions.c.tenant == bindparam("of_tenant"), executions.c.request_id == bindparam("of_request")
)
_RUNNING = (
    update(executions)
    .where(executions.c.id == bindparam("of_id"), executions.c.state == literal(ExecutionState.QUEUED.value))
    .values(
        state=literal(ExecutionState.RUNNING.value),
        sandbox_id=bindparam("new_sandbox_id"),
        started_at=bindparam("new_started_at"),
    )
)
_ENDING = (
    "outcome",
    "fault",
    "exit_code",
    "signal",
    "sandbox_id",
    "started_at",
    "ended_at",
    "completed_event",
    "last_event_sequence",
)
_COMPLETE = (
    update(executions)
    .where(
        executions.c.id == bindparam("of_id"),
        executions.c.tenant == bindparam("of_tenant"),
        executions.c.state != literal(ExecutionState.COMPLETED.value),
    )
    .values(state=literal(ExecutionState.COMPLETED.value), **{name: bindparam(f"new_{name}") for name in _ENDING})
)


class Bounds(Protocol):
    """How many series the totals may show by name."""

    @property
    def max_tenants(self) -> int: ...

    @property
    def max_series(self) -> int: ...


def admit(connection: Connection, admission: Admission) -> AdmitResult:
    """Keeps the admission, or finds the one that the same request had before."""
    if admission.request_id:
        before = _by_request(connection, admission.tenant, admission.request_id)
        if before is not None:
            return _again(connection, before, admission)
    connection.execute(_ADMIT, rows.admission_values(admission))
    if admission.labels:
        connection.execute(
            _LABEL,
            [
                {
                    "execution_id": admission.execution_id,
                    "tenant": admission.tenant,
                    "admitted_at": admission.admitted_at,
                    "key": key,
                    "value": value,
                }
                for key, value in admission.labels.items()
            ],
        )
    return AdmitResult(StoredExecution(admission, ExecutionState.QUEUED), created=True)


def withdraw(connection: Connection, execution_id: str) -> None:
    """Forgets an admission that came to nothing."""
    if connection.execute(_WITHDRAW, {"of_id": execution_id}).rowcount:
        connection.execute(_UNLABEL, {"of_id": execution_id})


def find_request(connection: Connection, tenant: str, request_id: str, request_hash: bytes) -> str | None:
    """The execution of an earlier, equal request."""
    before = _by_request(connection, tenant, request_id)
    return _same(before, request_hash).id if before is not None else None


def mark_running(connection: Connection, execution_id: str, sandbox_id: str, started_at: datetime) -> None:
    """Says that a call runs, unless it has ended already."""
    connection.execute(_RUNNING, {"of_id": execution_id, "new_sandbox_id": sandbox_id, "new_started_at": started_at})


def settle(
    connection: Connection,
    settlement: Settlement,
    bounds: Bounds,
    on_broken: Callable[[Problem], None] | None = None,
) -> UsageRecord:
    """Appends the record to the chain, adds it to the totals, completes the execution; or returns the first record.

    `on_broken` hears, on this thread, of a chain whose end is not what the head says. The call is settled all the same,
    behind whichever of the two is further: what it used was used, and its record covers nothing up.
    """
    given = settlement.record
    record, body = _chained(connection, given, on_broken)
    completed = connection.execute(
        _COMPLETE,
        {
            "of_id": given.execution_id,
            "of_tenant": given.tenant,
            "new_outcome": given.outcome.value,
            "new_fault": given.fault.value,
            "new_exit_code": given.exit_code,
            "new_signal": settlement.signal,
            "new_sandbox_id": settlement.sandbox_id,
            "new_started_at": given.started_at,
            "new_ended_at": given.ended_at,
            "new_completed_event": settlement.last_event(record),
            "new_last_event_sequence": settlement.last_event_sequence,
        },
    )
    if not completed.rowcount:
        return _settled_before(connection, given)
    checkpoints.erase(connection, given.execution_id)
    _write(connection, record, body, bounds)
    return record


def append(connection: Connection, given: UsageRecord, bounds: Bounds) -> UsageRecord:
    """Appends a record that ends no execution, a correction, and adds it to the totals. DATA_LOSS `LEDGER_BROKEN`."""
    record, body = _chained(connection, given, _refuse)
    _write(connection, record, body, bounds)
    return record


def _refuse(problem: Problem) -> None:
    raise ledger_broken(problem)


def _chained(
    connection: Connection, given: UsageRecord, on_broken: Callable[[Problem], None] | None
) -> tuple[UsageRecord, bytes]:
    """The record at its place behind the head, and its canonical bytes."""
    kept, last = ends(connection)
    before, problem = kept, end_problem(kept, last)
    if problem is not None:
        before = _further(connection, kept, last)
        if on_broken is not None:
            on_broken(problem)
    record = replace(given, sequence=before.sequence + 1, previous_hash=before.hash)
    body = canonical(record)
    return replace(record, hash=chain_hash(before.hash, body)), body


def _further(connection: Connection, kept: Head, last: Head) -> Head:
    """Of two ends that differ, the one to go on from; of two that end alike, the one that the last record's bytes
    speak for."""
    if kept.sequence != last.sequence:
        return kept if kept.sequence > last.sequence else last
    columns = usage_records.c
    query = select(columns.previous_hash, columns.body).where(columns.sequence == last.sequence)
    previous, body = connection.execute(query).one()
    return last if chain_hash(previous, body) == last.hash else kept


def _write(connection: Connection, record: UsageRecord, body: bytes, bounds: Bounds) -> None:
    connection.execute(_RECORD, rows.record_values(record, body))
    totals.add(connection, record, bounds.max_tenants, bounds.max_series)
    connection.execute(_SET_HEAD, {"new_sequence": record.sequence, "new_hash": record.hash})


def head(connection: Connection) -> Head:
    """The end of the chain as the ledger itself has it."""
    sequence, digest = connection.execute(_HEAD).one()
    return Head(sequence, digest)


def ends(connection: Connection) -> tuple[Head, Head]:
    """The kept head, and the last record that is there: the same in a ledger that is whole."""
    kept_sequence, kept_hash, sequence, digest = connection.execute(_ENDS).one()
    return Head(kept_sequence, kept_hash), Head(0, GENESIS) if sequence is None else Head(sequence, digest)


def end_problem(kept: Head, last: Head) -> Problem | None:
    """What the two ends alone show."""
    if kept.sequence > last.sequence:
        return Problem(Defect.TRUNCATED, last.sequence + 1, f"the head is at record {kept.sequence}")
    if kept.sequence < last.sequence:
        return Problem(Defect.HEAD_DIFFERS, kept.sequence, f"the head is behind record {last.sequence}")
    if kept.hash != last.hash:
        return Problem(Defect.HEAD_DIFFERS, kept.sequence, "the head's hash is not the last record's")
    return None


def _by_request(connection: Connection, tenant: str, request_id: str) -> Row[Any] | None:
    return connection.execute(_OF_REQUEST, {"of_tenant": tenant, "of_request": request_id}).one_or_none()


def _same(before: Row[Any], request_hash: bytes) -> Row[Any]:
    if before.request_hash != request_hash:
        raise Fault(
            FaultKind.ALREADY_EXISTS,
            "REQUEST_ID_REUSED",
            f"request_id {before.request_id} was used for a different request; use a new one for each request",
            resource=("execution", before.id),
            metadata={"field": "request_id", "request_id": before.request_id, "execution_id": before.id},
        )
    return before


def _again(connection: Connection, before: Row[Any], admission: Admission) -> AdmitResult:
    _same(before, admission.request_hash)
    labels = rows.labels_of(connection, [before.id]).get(before.id, {})
    return AdmitResult(rows.stored_execution(before, labels), created=False)


def _settled_before(connection: Connection, given: UsageRecord) -> UsageRecord:
    first = rows.record_of(connection, given.execution_id)
    if first is None or first.tenant != given.tenant:
        raise Fault(
            FaultKind.INTERNAL,
            "EXECUTION_NOT_ADMITTED",
            f"execution {given.execution_id} was never admitted, so it can't be settled",
            resource=("execution", given.execution_id),
        )
    return first
