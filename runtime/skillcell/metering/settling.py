"""The two transactions of every call: ADMIT before it may run, SETTLE after it ended.

Both are functions of a Connection, so that the ledger decides when they run and what they share a commit with. Writers
exclude each other on every store (see `storage/engines.py`): looking first and then writing can't be raced; the unique
constraints below are the second lock on the same door.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from skillcell.core.errors import Fault, FaultKind
from skillcell.core.records import Admission, StoredExecution
from skillcell.core.types import ExecutionState, UsageRecord
from skillcell.metering import rows, totals
from skillcell.metering.canonical import canonical, chain_hash
from skillcell.metering.records import AdmitResult, Head, Settlement
from skillcell.storage.tables import execution_labels, executions, ledger_head, usage_records


def admit(connection: Connection, admission: Admission) -> AdmitResult:
    """Keeps the admission, or finds the one that the same request had before."""
    if admission.request_id:
        before = _by_request(connection, admission.tenant, admission.request_id)
        if before is not None:
            return _again(connection, before, admission)
    connection.execute(insert(executions), rows.admission_values(admission))
    if admission.labels:
        connection.execute(
            insert(execution_labels),
            [
                {"execution_id": admission.execution_id, "tenant": admission.tenant, "key": key, "value": value}
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
    connection.execute(
        update(executions)
        .where(executions.c.id == execution_id, executions.c.state == ExecutionState.QUEUED.value)
        .values(state=ExecutionState.RUNNING.value, sandbox_id=sandbox_id, started_at=started_at)
    )


def settle(connection: Connection, settlement: Settlement, max_tenants: int, max_series: int) -> UsageRecord:
    """Appends the record to the chain, adds it to the totals, completes the execution; or returns the first record."""
    given = settlement.record
    before = head(connection)
    record = replace(given, sequence=before.sequence + 1, previous_hash=before.hash)
    body = canonical(record)
    record = replace(record, hash=chain_hash(before.hash, body))
    completed = connection.execute(
        update(executions)
        .where(
            executions.c.id == given.execution_id,
            executions.c.tenant == given.tenant,
            executions.c.state != ExecutionState.COMPLETED.value,
        )
        .values(
            state=ExecutionState.COMPLETED.value,
            outcome=given.outcome.value,
            fault=given.fault.value,
            exit_code=given.exit_code,
            signal=settlement.signal,
            sandbox_id=settlement.sandbox_id,
            started_at=given.started_at,
            ended_at=given.ended_at,
            completed_event=settlement.last_event(record),
            last_event_sequence=settlement.last_event_sequence,
        )
    )
    if not completed.rowcount:
        return _settled_before(connection, given)
    connection.execute(insert(usage_records), rows.record_values(record, body))
    totals.add(connection, record, max_tenants, max_series)
    connection.execute(update(ledger_head).values(sequence=record.sequence, hash=record.hash))
    return record


def head(connection: Connection) -> Head:
    """The end of the chain as the ledger itself has it."""
    sequence, digest = connection.execute(select(ledger_head.c.sequence, ledger_head.c.hash)).one()
    return Head(sequence, digest)


def _by_request(connection: Connection, tenant: str, request_id: str) -> Row[Any] | None:
    return connection.execute(
        select(executions).where(executions.c.tenant == tenant, executions.c.request_id == request_id)
    ).one_or_none()


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
