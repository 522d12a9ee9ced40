"""Between rows of the store and values of the domain; the only place that knows both."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, Row, select

from skillcell.core.records import Admission, StoredExecution
from skillcell.core.types import ExecutionState, FaultParty, Isolation, Limits, Outcome, UsageRecord
from skillcell.metering.canonical import parse
from skillcell.metering.defects import Defect, Problem, ledger_broken
from skillcell.metering.rating.quantities import sums_of
from skillcell.storage.tables import execution_labels, original, usage_records


def admission_values(admission: Admission) -> dict[str, Any]:
    """Columns of a new row of `executions`; labels are rows of their own."""
    return {
        "id": admission.execution_id,
        "tenant": admission.tenant,
        "request_id": admission.request_id or None,
        "request_hash": admission.request_hash,
        "publisher": admission.publisher,
        "skill": admission.skill,
        "version": admission.version,
        "digest": admission.digest,
        "entrypoint": admission.entrypoint,
        "isolation": admission.isolation.value,
        "driver": admission.driver,
        "limits": json.dumps(asdict(admission.limits), sort_keys=True),
        "plan_version": admission.plan_version,
        "parent_id": admission.parent_id,
        "root_id": admission.root_id,
        "input_bytes": admission.input_bytes,
        "instance_id": admission.instance_id,
        "boot_id": admission.boot_id,
        "admitted_at": admission.admitted_at,
        "state": ExecutionState.QUEUED.value,
        "sandbox_id": "",
        "last_event_sequence": 0,
    }


def stored_execution(row: Row[Any], labels: Mapping[str, str]) -> StoredExecution:
    """A whole row of `executions` with its labels."""
    admission = Admission(
        execution_id=row.id,
        tenant=row.tenant,
        request_id=row.request_id or "",
        request_hash=row.request_hash,
        publisher=row.publisher,
        skill=row.skill,
        version=row.version,
        digest=row.digest,
        entrypoint=row.entrypoint,
        isolation=Isolation(row.isolation),
        driver=row.driver,
        limits=Limits(**json.loads(row.limits)),
        plan_version=row.plan_version,
        parent_id=row.parent_id,
        root_id=row.root_id,
        input_bytes=row.input_bytes,
        instance_id=row.instance_id,
        boot_id=row.boot_id,
        admitted_at=row.admitted_at,
        labels=labels,
    )
    return StoredExecution(
        admission,
        ExecutionState(row.state),
        sandbox_id=row.sandbox_id,
        started_at=row.started_at,
        ended_at=row.ended_at,
        outcome=Outcome(row.outcome) if row.outcome else None,
        fault=FaultParty(row.fault) if row.fault else None,
        exit_code=row.exit_code,
        signal=row.signal,
        completed_event=row.completed_event or b"",
        last_event_sequence=row.last_event_sequence,
    )


def record_values(record: UsageRecord, body: bytes) -> dict[str, Any]:
    """Columns of a row of `usage_records`: the bytes, and what of them is filtered and summed by."""
    rated = sums_of(record)
    return {
        "sequence": record.sequence,
        "event_id": record.event_id,
        "execution_id": record.execution_id,
        "correction_of": record.correction_of,
        "tenant": record.tenant,
        "publisher": record.publisher,
        "skill": record.skill,
        "version": record.version,
        "entrypoint": record.entrypoint,
        "isolation": record.isolation.value,
        "outcome": record.outcome.value,
        "billable": record.billable,
        "ended_at": record.ended_at,
        "calls": record.calls,
        "billed_ms": record.billed_ms,
        "run_ns": record.times.run_ns,
        "cpu_ns": record.cpu_total_ns,
        "memory_reserved_byte_ns": record.memory_limit_byte_ns,
        "egress_in_bytes": record.egress_in_bytes,
        "egress_out_bytes": record.egress_out_bytes,
        "input_bytes": record.input_bytes,
        "output_bytes": record.output_bytes,
        "artifact_bytes": record.artifact_bytes,
        "plan_version": record.plan_version,
        "rated_cpu_milli_ns": rated.cpu_milli_ns,
        "rated_memory_used_byte_ns": rated.memory_used_byte_ns,
        "rated_memory_larger_byte_ns": rated.memory_larger_byte_ns,
        "body": body,
        "previous_hash": record.previous_hash,
        "hash": record.hash,
    }


def usage_record(row: Row[Any], labels: Mapping[str, str]) -> UsageRecord:
    """The record of a row's bytes, with its place in the chain. DATA_LOSS `LEDGER_BROKEN` for bytes that are none."""
    try:
        record = parse(row.body)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ledger_broken(Problem(Defect.EDITED, row.sequence, "its bytes can't be read")) from error
    return replace(record, previous_hash=row.previous_hash, hash=row.hash, labels=labels)


def labels_of(connection: Connection, execution_ids: Iterable[str]) -> dict[str, dict[str, str]]:
    """Labels by execution, where there are any left."""
    found: dict[str, dict[str, str]] = {}
    columns = execution_labels.c
    query = select(columns.execution_id, columns.key, columns.value).where(
        columns.execution_id.in_(list(execution_ids))
    )
    for execution_id, key, value in connection.execute(query):
        found.setdefault(execution_id, {})[key] = value
    return found


def record_of(connection: Connection, execution_id: str) -> UsageRecord | None:
    """The one record of an execution, corrections aside."""
    query = select(usage_records).where(usage_records.c.execution_id == execution_id, original)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return usage_record(row, labels_of(connection, [execution_id]).get(execution_id, {}))
