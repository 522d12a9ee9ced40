"""From the protos to what only the client shows; what server and client share is converted in `skillcell.wire`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import cast

from google.protobuf.message import Message

from skillcell.client.types import (
    CallOptions,
    Estimate,
    Event,
    Execution,
    LedgerDefect,
    Reservation,
    Skill,
    UsageGroup,
    UsageTotals,
    Verification,
)
from skillcell.core.types import ExecutionRequest, InputFile, LimitRequest
from skillcell.v1 import event_pb2, execution_pb2, skill_pb2, types_pb2, usage_pb2
from skillcell.wire import completed_from_proto, event_from_proto, granted_from_proto
from skillcell.wire.billing import cost_from_proto
from skillcell.wire.enums import EXECUTION_STATE, ISOLATION, OUTCOME, VISIBILITY
from skillcell.wire.events import artifact_from_proto
from skillcell.wire.times import instant_from_proto, instant_to_proto


def new_request(skill: str, options: CallOptions) -> ExecutionRequest:
    """Of options that `inputs.resolved` has made ready."""
    return ExecutionRequest(
        skill=skill,
        entrypoint=options.get("entrypoint", ""),
        input_json=cast("bytes | None", options.get("input_json")),
        input_upload=options.get("input_upload", ""),
        args=tuple(options.get("args", ())),
        stdin=cast(bytes, options.get("stdin", b"")),
        stdin_upload=options.get("stdin_upload", ""),
        files=tuple(cast("Sequence[InputFile]", options.get("files", ()))),
        env=options.get("env", {}),
        secrets=tuple(options.get("secrets", ())),
        limits=options.get("limits", LimitRequest()),
        isolation=options.get("isolation"),
        labels=options.get("labels", {}),
        priority=options.get("priority", 0),
        working_dir=options.get("working_dir"),
        collect=tuple(options.get("collect", ())),
    )


def event(message: event_pb2.ExecutionEvent) -> Event | None:
    """None for a kind that this version does not know."""
    kind = event_from_proto(message)
    if kind is None:
        return None
    return Event(message.sequence, instant_from_proto(message.time), message.execution_id, kind)


def execution(message: execution_pb2.Execution) -> Execution:
    return Execution(
        id=message.id,
        request_id=message.request_id,
        tenant=message.tenant,
        skill=message.skill,
        version=message.version,
        digest=message.digest,
        entrypoint=message.entrypoint,
        state=EXECUTION_STATE.from_wire(message.state),
        isolation=ISOLATION.from_wire(message.isolation),
        limits=granted_from_proto(message.limits),
        created_at=instant_from_proto(message.create_time),
        started_at=_time(message, "start_time"),
        ended_at=_time(message, "end_time"),
        expires_at=_time(message, "expire_time"),
        last_sequence=message.last_sequence,
        labels=dict(message.labels),
        completed=completed_from_proto(message.completed) if message.HasField("completed") else None,
        artifacts=tuple(artifact_from_proto(artifact) for artifact in message.artifacts),
    )


def estimate(message: execution_pb2.EstimateExecutionResponse) -> Estimate:
    return Estimate(
        version=message.version,
        digest=message.digest,
        entrypoint=message.entrypoint,
        limits=granted_from_proto(message.limits),
        isolation=ISOLATION.from_wire(message.isolation),
        reservations=tuple(Reservation(r.quota, r.amount, r.available) for r in message.reservations),
        max_cost=cost_from_proto(message.max_cost) if message.HasField("max_cost") else None,
    )


def skill(message: skill_pb2.Skill) -> Skill:
    return Skill(
        publisher=message.publisher,
        name=message.name,
        description=message.description,
        latest_version=message.latest_version,
        aliases=dict(message.aliases),
        visibility=VISIBILITY.optional(message.visibility),
        callable=message.callable,
        created_at=instant_from_proto(message.create_time),
        updated_at=instant_from_proto(message.update_time),
    )


def usage_group(message: usage_pb2.UsageGroup) -> UsageGroup:
    keys = {
        name: value
        for name in ("tenant", "publisher", "skill", "version", "entrypoint")
        if (value := getattr(message, name))
    }
    if message.outcome:
        keys["outcome"] = OUTCOME.from_wire(message.outcome).value
    if message.isolation:
        keys["isolation"] = ISOLATION.from_wire(message.isolation).value
    if message.HasField("time"):
        keys["time"] = instant_from_proto(message.time.start).isoformat()
    keys |= {f"label:{name}": value for name, value in message.labels.items()}
    totals = {field.name: int(getattr(message.totals, field.name) or 0) for field in fields(UsageTotals)}
    return UsageGroup(keys, UsageTotals(**totals))


def verification(message: usage_pb2.VerifyLedgerResponse) -> Verification:
    kinds = usage_pb2.LedgerDefect.Kind
    return Verification(
        intact=message.intact,
        records_checked=message.records_checked,
        defects=tuple(
            LedgerDefect(kinds.Name(d.kind).removeprefix("KIND_"), d.sequence, d.detail) for d in message.defects
        ),
        head_sequence=message.head.sequence,
        head_hash=message.head.hash,
    )


def time_range(after: datetime | None, before: datetime | None) -> types_pb2.TimeRange | None:
    """From `after` on, before `before`; None where both are open."""
    if after is None and before is None:
        return None
    message = types_pb2.TimeRange()
    if after is not None:
        message.start.CopyFrom(instant_to_proto(after))
    if before is not None:
        message.end.CopyFrom(instant_to_proto(before))
    return message


def _time(message: Message, name: str) -> datetime | None:
    return instant_from_proto(getattr(message, name)) if message.HasField(name) else None
