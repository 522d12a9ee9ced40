"""Enums map by name: a member `STANDARD` is `ISOLATION_STANDARD` on the wire.

The proto's zero value (`..._UNSPECIFIED`) has no member; where it may stand in a message, it is None in the domain.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Generic, TypeVar

from skillcell.core import rate_plans, sinks, skills, types
from skillcell.v1 import event_pb2, execution_pb2, policy_pb2, sink_pb2, skill_pb2, spec_pb2, types_pb2

if TYPE_CHECKING:
    from google.protobuf.internal.enum_type_wrapper import _EnumTypeWrapper

Member = TypeVar("Member", bound=Enum)
Number = TypeVar("Number", bound=int)


class UnknownValue(ValueError):
    """The other side sent an enum value that this version does not know, or none where there must be one."""


class EnumMap(Generic[Member, Number]):
    """Both directions of one enum, built once; a member without a counterpart is an error when it is built."""

    def __init__(self, members: type[Member], wire: _EnumTypeWrapper[Number], prefix: str) -> None:
        self._name = members.__name__
        self._numbers: dict[Member, Number] = {member: wire.Value(prefix + member.name) for member in members}
        self._members: dict[int, Member] = {number: member for member, number in self._numbers.items()}

    def to_wire(self, member: Member) -> Number:
        return self._numbers[member]

    def from_wire(self, number: int) -> Member:
        """Raises UnknownValue for a number without a member, the unspecified one included."""
        try:
            return self._members[number]
        except KeyError:
            raise UnknownValue(f"{self._name} has no value {number}") from None

    def optional(self, number: int) -> Member | None:
        """None for the unspecified value."""
        return None if number == 0 else self.from_wire(number)


ISOLATION = EnumMap(types.Isolation, types_pb2.Isolation, "ISOLATION_")
OUTCOME = EnumMap(types.Outcome, types_pb2.Outcome, "OUTCOME_")
FAULT_PARTY = EnumMap(types.FaultParty, types_pb2.FaultParty, "FAULT_PARTY_")
MEASUREMENT = EnumMap(types.Measurement, types_pb2.Measurement, "MEASUREMENT_")
WORKING_DIR = EnumMap(types.WorkingDir, spec_pb2.WorkingDir, "WORKING_DIR_")
ON_DISCONNECT = EnumMap(types.OnDisconnect, spec_pb2.OnDisconnect, "ON_DISCONNECT_")
CANCEL_SOURCE = EnumMap(types.CancelReason, event_pb2.CancelSource, "CANCEL_SOURCE_")
EXECUTION_STATE = EnumMap(types.ExecutionState, execution_pb2.ExecutionState, "EXECUTION_STATE_")
VERSION_STATE = EnumMap(skills.VersionState, skill_pb2.VersionState, "VERSION_STATE_")
SINK_MODE = EnumMap(sinks.SinkMode, sink_pb2.SinkMode, "SINK_MODE_")
SINK_STATE = EnumMap(sinks.SinkState, sink_pb2.SinkState, "SINK_STATE_")
HOLD_CAUSE = EnumMap(sinks.HoldCause, sink_pb2.SinkHoldCause, "SINK_HOLD_CAUSE_")
RESUME_CHOICE = EnumMap(sinks.ResumeChoice, sink_pb2.SinkResumeChoice, "SINK_RESUME_CHOICE_")
VISIBILITY = EnumMap(skills.Visibility, skill_pb2.Visibility, "VISIBILITY_")
RATE_METER = EnumMap(rate_plans.RateMeter, policy_pb2.RateMeter, "RATE_METER_")
SEVERITY = EnumMap(skills.Severity, skill_pb2.Severity, "SEVERITY_")
