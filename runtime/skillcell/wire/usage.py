"""The usage record of a call. `memory_limit_byte_ns` is decimal text on the wire: it passes 63 bits within seconds."""

from __future__ import annotations

from dataclasses import fields

from skillcell.core.types import UsageRecord
from skillcell.v1 import usage_pb2 as pb
from skillcell.wire.enums import FAULT_PARTY, ISOLATION, MEASUREMENT, OUTCOME
from skillcell.wire.limits import stage_times_from_proto, stage_times_to_proto
from skillcell.wire.times import instant_from_proto, instant_to_proto

_OTHER = {
    "isolation",
    "outcome",
    "fault",
    "measurement",
    "exit_code",
    "labels",
    "times",
    "memory_limit_byte_ns",
    "memory_used_byte_ns",
    "admitted_at",
    "started_at",
    "ended_at",
}
_SAME = tuple(field.name for field in fields(UsageRecord) if field.name not in _OTHER)
"""Fields that have one name and one form on both sides."""


def usage_to_proto(record: UsageRecord, canonical_bytes: bytes = b"") -> pb.UsageRecord:
    """`canonical_bytes` are the ledger's, for whoever verifies the chain."""
    message = pb.UsageRecord(
        **{name: getattr(record, name) for name in _SAME},
        canonical_bytes=canonical_bytes,
        labels=record.labels,
        isolation=ISOLATION.to_wire(record.isolation),
        outcome=OUTCOME.to_wire(record.outcome),
        fault=FAULT_PARTY.to_wire(record.fault),
        exit_code=record.exit_code,
        measurement=MEASUREMENT.to_wire(record.measurement),
        admit_time=instant_to_proto(record.admitted_at),
        end_time=instant_to_proto(record.ended_at),
        times=stage_times_to_proto(record.times),
        memory_limit_byte_ns=str(record.memory_limit_byte_ns),
        memory_used_byte_ns=str(record.memory_used_byte_ns),
    )
    if record.started_at is not None:
        message.start_time.CopyFrom(instant_to_proto(record.started_at))
    return message


def usage_from_proto(message: pb.UsageRecord) -> UsageRecord:
    """Raises UnknownValue. Drops canonical_bytes, which the domain's record does not hold."""
    return UsageRecord(
        **{name: getattr(message, name) for name in _SAME},
        labels=dict(message.labels),
        isolation=ISOLATION.from_wire(message.isolation),
        outcome=OUTCOME.from_wire(message.outcome),
        fault=FAULT_PARTY.from_wire(message.fault),
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        measurement=MEASUREMENT.from_wire(message.measurement),
        admitted_at=instant_from_proto(message.admit_time),
        started_at=instant_from_proto(message.start_time) if message.HasField("start_time") else None,
        ended_at=instant_from_proto(message.end_time),
        times=stage_times_from_proto(message.times),
        memory_limit_byte_ns=int(message.memory_limit_byte_ns or "0"),
        memory_used_byte_ns=int(message.memory_used_byte_ns or "0"),
    )
