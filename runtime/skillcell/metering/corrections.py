"""Corrections: records of the ledger that put an earlier one right, as differences to it.

A correction is chained and summed like every record; what it corrects is never touched. What a reader could get wrong:
it ends when it is written, so it is billed in the period that is open then, and it carries the plan of the call, so it
is rated by what the call was rated by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from skillcell.core import ids
from skillcell.core.corrections import Correction, UsageDelta
from skillcell.core.errors import Fault, FaultKind, FieldViolation, invalid, not_found
from skillcell.core.types import Principal, StageTimes, UsageRecord
from skillcell.metering import rows, settling
from skillcell.metering.canonical import SCHEMA_VERSION
from skillcell.storage.tables import usage_records
from skillcell.storage.tables_billing import corrections

_MOST = 10**15
"""Of one difference: more than any call can use, and thousands of them still sum within 64 bits."""


def corrected(
    original: UsageRecord, earlier: Sequence[UsageRecord], delta: UsageDelta, event_id: str, now: datetime
) -> UsageRecord:
    """The record of a correction, not yet chained.

    INVALID_ARGUMENT naming every field of which more is taken back than the original and its earlier corrections leave.
    """
    if original.correction_of:
        raise invalid("event_id", f"{original.event_id} is a correction itself; correct {original.correction_of}")
    if delta == UsageDelta():
        raise invalid("delta", "changes nothing; give at least one difference")
    violations = tuple(_violations(original, earlier, delta))
    if violations:
        text = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
        raise Fault(FaultKind.INVALID_ARGUMENT, "INVALID_FIELD", text, violations=violations)
    return replace(
        original,
        **asdict(delta),
        event_id=event_id,
        correction_of=original.event_id,
        request_id="",
        started_at=None,
        ended_at=now,
        times=StageTimes(),
        wall_ns=0,
        cpu_user_ns=0,
        cpu_system_ns=0,
        memory_limit_bytes=0,
        memory_peak_bytes=0,
        memory_baseline_bytes=0,
        milli_cpus=0,
        pids_peak=0,
        disk_bytes=0,
        input_bytes=0,
        schema_version=SCHEMA_VERSION,
        sequence=0,
        previous_hash=b"",
        hash=b"",
    )


def _violations(original: UsageRecord, earlier: Sequence[UsageRecord], delta: UsageDelta) -> list[FieldViolation]:
    found = []
    for name in UsageDelta.names():
        change = getattr(delta, name)
        left = sum(getattr(record, name) for record in (original, *earlier))
        if change and left + change < 0:
            found.append(FieldViolation(f"delta.{name}", f"is {change}; only {left} is left to take back"))
        elif name == "calls" and left + change > 1:
            found.append(FieldViolation("delta.calls", f"is {change}; the call is charged already"))
        elif not name.endswith("byte_ns") and abs(change) > _MOST:
            found.append(FieldViolation(f"delta.{name}", f"is {change}; the limit of one correction is {_MOST}"))
    return found


def record_correction(
    connection: Connection, actor: Principal, correction: Correction, now: datetime, bounds: settling.Bounds
) -> UsageRecord:
    """Appends a correction to the ledger, or finds the one that the same request made before."""
    given = _request_hash(correction)
    if correction.request_id:
        before = _by_request(connection, actor.tenant, correction.request_id)
        if before is not None:
            return _same(connection, before, correction.request_id, given)
    original = _record(connection, correction.event_id)
    if original is None:
        raise not_found("usage_record", correction.event_id)
    record = corrected(original, _earlier(connection, original.event_id), correction.delta, ids.event_id(), now)
    record = settling.append(connection, record, bounds)
    connection.execute(
        insert(corrections),
        {
            "event_id": record.event_id,
            "actor_tenant": actor.tenant,
            "request_id": correction.request_id or None,
            "request_hash": given,
            "reason": correction.reason,
            "actor": actor.key_id,
            "created_at": now,
        },
    )
    return record


def _request_hash(correction: Correction) -> bytes:
    said = {"event_id": correction.event_id, "delta": asdict(correction.delta), "reason": correction.reason}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).digest()


def _by_request(connection: Connection, tenant: str, request_id: str) -> Row[Any] | None:
    columns = corrections.c
    query = select(corrections).where(columns.actor_tenant == tenant, columns.request_id == request_id)
    return connection.execute(query).one_or_none()


def _same(connection: Connection, before: Row[Any], request_id: str, given: bytes) -> UsageRecord:
    record = _record(connection, before.event_id)
    if before.request_hash != given or record is None:
        raise Fault(
            FaultKind.ALREADY_EXISTS,
            "REQUEST_ID_REUSED",
            f"request_id {request_id} was used for a different correction; use a new one for each",
            resource=("usage_record", before.event_id),
            metadata={"field": "request_id", "request_id": request_id, "event_id": before.event_id},
        )
    return record


def _record(connection: Connection, event_id: str) -> UsageRecord | None:
    row = connection.execute(select(usage_records).where(usage_records.c.event_id == event_id)).one_or_none()
    if row is None:
        return None
    return rows.usage_record(row, rows.labels_of(connection, [row.execution_id]).get(row.execution_id, {}))


def _earlier(connection: Connection, event_id: str) -> list[UsageRecord]:
    query = select(usage_records).where(usage_records.c.correction_of == event_id, usage_records.c.correction_of != "")
    return [rows.usage_record(row, {}) for row in connection.execute(query)]
