"""The two transactions of every call: ADMIT before it may run, SETTLE after it ended.

Both are functions of a Connection, so that the ledger decides when they run and what they share a commit with. Writers
exclude each other on every store (see `storage/engines.py`): looking first and then writing can't be raced; the unique
constraints below are the second lock on the same door. Statements are built once, since building one costs more than
running it and every call pays for both.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import Connection, Row, bindparam, insert, literal, select, update

from skillcell.core.errors import Fault, FaultKind
from skillcell.core.records import Admission, StoredExecution
from skillcell.core.types import ExecutionState, UsageRecord
from skillcell.metering import rows, totals
from skillcell.metering.canonical import canonical, chain_hash
from skillcell.metering.records import AdmitResult, Head, Settlement
from skillcell.storage.tables import execution_labels, executions, ledger_head, usage_records

_ADMIT = insert(executions)
_LABEL = insert(execution_labels)
_RECORD = insert(usage_records)
_HEAD = select(ledger_head.c.sequence, ledger_head.c.hash)
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


def find_request(connection: Connection, tenant: str, request_id: str, request_hash: bytes) -> str | None:
    """The execution of an earlier, equal request."""
    before = _by_request(connection, tenant, request_id)
    return _same(before, request_hash).id if before is not None else None


def mark_running(connection: Connection, execution_id: str, sandbox_id: str, started_at: datetime) -> None:
    """Says that a call runs, unless it has ended already."""
    connection.execute(_RUNNING, {"of_id": execution_id, "new_sandbox_id": sandbox_id, "new_started_at": started_at})


def settle(connection: Connection, settlement: Settlement, bounds: Bounds) -> UsageRecord:
    """Appends the record to the chain, adds it to the totals, completes the execution; or returns the first record."""
    given = settlement.record
    record, body = _chained(connection, given)
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
    _write(connection, record, body, bounds)
    return record


def append(connection: Connection, given: UsageRecord, bounds: Bounds) -> UsageRecord:
    """Appends a record that ends no execution, a correction, and adds it to the totals."""
    record, body = _chained(connection, given)
    _write(connection, record, body, bounds)
    return record


def _chained(connection: Connection, given: UsageRecord) -> tuple[UsageRecord, bytes]:
    """The record at its place behind the head, and its canonical bytes."""
    before = head(connection)
    record = replace(given, sequence=before.sequence + 1, previous_hash=before.hash)
    body = canonical(record)
    return replace(record, hash=chain_hash(before.hash, body)), body


def _write(connection: Connection, record: UsageRecord, body: bytes, bounds: Bounds) -> None:
    connection.execute(_RECORD, rows.record_values(record, body))
    totals.add(connection, record, bounds.max_tenants, bounds.max_series)
    connection.execute(_SET_HEAD, {"new_sequence": record.sequence, "new_hash": record.hash})


def head(connection: Connection) -> Head:
    """The end of the chain as the ledger itself has it."""
    sequence, digest = connection.execute(_HEAD).one()
    return Head(sequence, digest)


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
