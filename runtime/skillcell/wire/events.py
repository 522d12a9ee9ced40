"""Events of a call, to the wire and back.

What the log of an execution knows and the domain's events do not is carried beside them: sequence, time, and the
running byte offsets of stdout and stderr. An `Offsets` therefore belongs to one execution and sees its events in order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from skillcell.core import events
from skillcell.v1 import event_pb2 as pb
from skillcell.wire.billing import cost_from_proto, cost_to_proto
from skillcell.wire.enums import CANCEL_SOURCE, FAULT_PARTY, ISOLATION, OUTCOME
from skillcell.wire.limits import (
    evidence_from_proto,
    evidence_to_proto,
    granted_from_proto,
    limits_to_proto,
    stage_times_from_proto,
    stage_times_to_proto,
)
from skillcell.wire.times import instant_from_proto, instant_to_proto
from skillcell.wire.usage import usage_from_proto, usage_to_proto

_LEVELS = {
    "debug": pb.Log.LEVEL_DEBUG,
    "info": pb.Log.LEVEL_INFO,
    "warning": pb.Log.LEVEL_WARNING,
    "error": pb.Log.LEVEL_ERROR,
}
_LEVEL_NAMES = {number: name for name, number in _LEVELS.items()}


@dataclass(slots=True)
class Offsets:
    """How much of each stream went before; counts on with every event that is converted."""

    stdout: int = 0
    stderr: int = 0
    outputs: int = 0


@dataclass(frozen=True, slots=True)
class Pinned:
    """What `Started` tells of the version that runs, besides what the domain's event holds."""

    version: str = ""
    digest: str = ""
    entrypoint: str = ""


NOT_PINNED = Pinned()


@dataclass(slots=True)
class EventEncoder:
    """Encodes one execution's events, in order, as serialized ExecutionEvents (`execution.Codec`)."""

    execution_id: str
    pinned: Pinned = NOT_PINNED
    offsets: Offsets = field(default_factory=Offsets)

    def encode(self, sequence: int, time: datetime, event: events.Event) -> bytes:
        message = event_to_proto(event, sequence, time, self.execution_id, offsets=self.offsets, pinned=self.pinned)
        return message.SerializeToString()


def event_to_proto(
    event: events.Event,
    sequence: int,
    time: datetime,
    execution_id: str,
    *,
    offsets: Offsets,
    pinned: Pinned = NOT_PINNED,
) -> pb.ExecutionEvent:
    """`offsets` is moved on past this event."""
    message = pb.ExecutionEvent(sequence=sequence, time=instant_to_proto(time), execution_id=execution_id)
    match event:
        case events.Stdout(data):
            message.stdout.data = data
            message.stdout.offset = offsets.stdout
            offsets.stdout += len(data)
        case events.Stderr(data):
            message.stderr.data = data
            message.stderr.offset = offsets.stderr
            offsets.stderr += len(data)
        case events.Log():
            message.log.CopyFrom(_log_to_proto(event))
        case events.Progress(fraction, text):
            message.progress.CopyFrom(pb.Progress(fraction=fraction, message=text))
        case events.Output(value):
            message.output.json = value
            message.output.index = offsets.outputs
            offsets.outputs += 1
        case events.Queued(position):
            message.queued.position = position
        case events.Started():
            message.started.CopyFrom(_started_to_proto(event, pinned))
        case events.Artifact():
            message.artifact.CopyFrom(artifact_to_proto(event))
        case events.ArtifactRefused(name, reason):
            message.artifact_refused.name = name
            message.artifact_refused.message = reason
        case events.Completed():
            message.completed.CopyFrom(completed_to_proto(event))
    return message


def event_from_proto(message: pb.ExecutionEvent) -> events.Event | None:
    """None for a kind that this version does not know: a client must pass over it. Raises UnknownValue.

    Sequence, time and execution id stay in the message; offsets, output indexes and what is pinned are dropped.
    """
    match message.WhichOneof("kind"):
        case "stdout":
            return events.Stdout(message.stdout.data)
        case "stderr":
            return events.Stderr(message.stderr.data)
        case "log":
            return _log_from_proto(message.log)
        case "progress":
            fraction = message.progress.fraction if message.progress.HasField("fraction") else None
            return events.Progress(fraction, message.progress.message)
        case "output":
            return events.Output(message.output.json)
        case "queued":
            return events.Queued(message.queued.position)
        case "started":
            return _started_from_proto(message.started)
        case "artifact":
            return artifact_from_proto(message.artifact)
        case "artifact_refused":
            return events.ArtifactRefused(message.artifact_refused.name, message.artifact_refused.message)
        case "completed":
            return completed_from_proto(message.completed)
        case _:
            return None


def _log_to_proto(log: events.Log) -> pb.Log:
    fields = json.dumps(dict(log.fields), ensure_ascii=False).encode("utf-8", "replace") if log.fields else b""
    return pb.Log(level=_LEVELS.get(log.level, pb.Log.LEVEL_UNSPECIFIED), message=log.message, fields_json=fields)


def _log_from_proto(message: pb.Log) -> events.Log:
    fields: Any = json.loads(message.fields_json) if message.fields_json else {}
    return events.Log(_LEVEL_NAMES.get(message.level, "info"), message.message, fields if type(fields) is dict else {})


def _started_to_proto(started: events.Started, pinned: Pinned) -> pb.Started:
    return pb.Started(
        sandbox_id=started.sandbox_id,
        warm=started.warm,
        driver=started.driver,
        isolation=ISOLATION.to_wire(started.isolation),
        limits=limits_to_proto(started.limits),
        times=stage_times_to_proto(started.times),
        version=pinned.version,
        digest=pinned.digest,
        entrypoint=pinned.entrypoint,
    )


def _started_from_proto(message: pb.Started) -> events.Started:
    return events.Started(
        sandbox_id=message.sandbox_id,
        warm=message.warm,
        driver=message.driver,
        isolation=ISOLATION.from_wire(message.isolation),
        limits=granted_from_proto(message.limits),
        times=stage_times_from_proto(message.times),
    )


def artifact_to_proto(artifact: events.Artifact) -> pb.Artifact:
    return pb.Artifact(
        name=artifact.name,
        size_bytes=artifact.size_bytes,
        sha256=bytes.fromhex(artifact.sha256),
        media_type=artifact.media_type,
    )


def artifact_from_proto(message: pb.Artifact) -> events.Artifact:
    return events.Artifact(message.name, message.size_bytes, message.sha256.hex(), message.media_type)


def completed_to_proto(completed: events.Completed) -> pb.Completed:
    message = pb.Completed(
        outcome=OUTCOME.to_wire(completed.outcome),
        exit_code=completed.exit_code,
        signal=completed.signal,
        message=completed.message,
        fault=FAULT_PARTY.to_wire(completed.fault),
        billable=completed.billable,
        retryable=completed.retryable,
        usage=usage_to_proto(completed.usage),
        ledger_sequence=completed.usage.sequence,
    )
    if completed.evidence is not None:
        message.evidence.CopyFrom(evidence_to_proto(completed.evidence))
    if completed.cost is not None:
        message.cost.CopyFrom(cost_to_proto(completed.cost))
    if completed.canceled_by is not None:
        message.canceled_by = CANCEL_SOURCE.to_wire(completed.canceled_by)
    return message


def completed_from_proto(message: pb.Completed) -> events.Completed:
    return events.Completed(
        outcome=OUTCOME.from_wire(message.outcome),
        fault=FAULT_PARTY.from_wire(message.fault),
        billable=message.billable,
        retryable=message.retryable,
        usage=usage_from_proto(message.usage),
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        signal=message.signal if message.HasField("signal") else None,
        message=message.message,
        evidence=evidence_from_proto(message.evidence) if message.HasField("evidence") else None,
        canceled_by=CANCEL_SOURCE.optional(message.canceled_by),
        cost=cost_from_proto(message.cost) if message.HasField("cost") else None,
    )


def start_of(record: bytes) -> tuple[datetime, events.Started] | None:
    """When and how a call started, where an encoded event says so."""
    message = pb.ExecutionEvent.FromString(record)
    if message.WhichOneof("kind") != "started":
        return None
    return instant_from_proto(message.time), _started_from_proto(message.started)
