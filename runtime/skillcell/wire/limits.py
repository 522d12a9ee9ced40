"""Limits as asked for and as granted, the evidence that decided an outcome, and where a call's time went."""

from __future__ import annotations

from dataclasses import fields

from skillcell.core.types import Evidence, LimitRequest, Limits, StageTimes
from skillcell.v1 import types_pb2 as pb
from skillcell.wire.times import duration_from_proto, duration_to_proto

_DURATIONS = {"wall_ns": "timeout", "cpu_ns": "cpu_time"}
"""Domain name to wire name, of what the wire carries as a Duration; all other limits have one name on both sides."""
_COUNTS = tuple(name for name in Limits.names() if name not in _DURATIONS)
_STAGES = tuple(field.name for field in fields(StageTimes))


def limits_to_proto(limits: Limits | LimitRequest) -> pb.Limits:
    """Only what is set; of granted limits that is everything."""
    message = pb.Limits()
    for name, wire_name in _DURATIONS.items():
        value = getattr(limits, name)
        if value is not None:
            getattr(message, wire_name).CopyFrom(duration_to_proto(value))
    for name in _COUNTS:
        value = getattr(limits, name)
        if value is not None:
            setattr(message, name, value)
    return message


def limits_from_proto(message: pb.Limits) -> LimitRequest:
    """What is unset stays None."""
    asked = {
        name: duration_from_proto(getattr(message, wire_name))
        for name, wire_name in _DURATIONS.items()
        if message.HasField(wire_name)  # type: ignore[arg-type]
    }
    for name in _COUNTS:
        if message.HasField(name):  # type: ignore[arg-type]
            asked[name] = getattr(message, name)
    return LimitRequest(**asked)


def granted_from_proto(message: pb.Limits) -> Limits:
    """Granted limits; 0 for one that an older gateway did not tell."""
    asked = limits_from_proto(message)
    return Limits(**{name: getattr(asked, name) or 0 for name in Limits.names()})


def evidence_to_proto(evidence: Evidence) -> pb.Evidence:
    return pb.Evidence(
        limit=evidence.limit,
        limit_value=evidence.limit_value,
        observed=evidence.observed,
        unit=evidence.unit,
        source=evidence.source,
        detail=evidence.detail,
    )


def evidence_from_proto(message: pb.Evidence) -> Evidence:
    return Evidence(
        limit=message.limit,
        limit_value=message.limit_value,
        observed=message.observed,
        unit=message.unit,
        source=message.source,
        detail=message.detail,
    )


def stage_times_to_proto(times: StageTimes) -> pb.StageTimes:
    return pb.StageTimes(**{name: getattr(times, name) for name in _STAGES})


def stage_times_from_proto(message: pb.StageTimes) -> StageTimes:
    return StageTimes(**{name: getattr(message, name) for name in _STAGES})
