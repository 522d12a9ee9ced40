"""An execution as the store knows it, for the wire."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from skillcell.core.events import Artifact
from skillcell.core.records import StoredExecution
from skillcell.v1 import event_pb2
from skillcell.v1 import execution_pb2 as pb
from skillcell.wire.enums import EXECUTION_STATE, ISOLATION
from skillcell.wire.events import artifact_to_proto
from skillcell.wire.limits import limits_to_proto
from skillcell.wire.times import instant_to_proto


def execution_to_proto(
    stored: StoredExecution, *, artifacts: Iterable[Artifact] = (), expires_at: datetime | None = None
) -> pb.Execution:
    """`stored.completed_event` is the serialized last event; `artifacts` stay empty in listings."""
    admission = stored.admission
    message = pb.Execution(
        id=admission.execution_id,
        request_id=admission.request_id,
        tenant=admission.tenant,
        skill=f"{admission.publisher}/{admission.skill}",
        version=admission.version,
        digest=admission.digest,
        entrypoint=admission.entrypoint,
        state=EXECUTION_STATE.to_wire(stored.state),
        create_time=instant_to_proto(admission.admitted_at),
        last_sequence=stored.last_event_sequence,
        labels=admission.labels,
        limits=limits_to_proto(admission.limits),
        isolation=ISOLATION.to_wire(admission.isolation),
        parent_id=admission.parent_id,
        artifacts=[artifact_to_proto(artifact) for artifact in artifacts],
    )
    if stored.started_at is not None:
        message.start_time.CopyFrom(instant_to_proto(stored.started_at))
    if stored.ended_at is not None:
        message.end_time.CopyFrom(instant_to_proto(stored.ended_at))
    if expires_at is not None:
        message.expire_time.CopyFrom(instant_to_proto(expires_at))
    if stored.completed_event:
        message.completed.CopyFrom(event_pb2.ExecutionEvent.FromString(stored.completed_event).completed)
    return message
