"""The one place where the domain model meets the protos: both directions, pure functions, no gRPC.

Server and client share it, so a value that one of them writes the other reads back as the same value. What the protos
hold and the domain does not (and the other way round) is said at the function that drops it.
"""

from skillcell.wire.enums import UnknownValue
from skillcell.wire.events import (
    EventEncoder,
    Offsets,
    Pinned,
    completed_from_proto,
    completed_to_proto,
    event_from_proto,
    event_to_proto,
)
from skillcell.wire.executions import execution_to_proto
from skillcell.wire.limits import (
    evidence_from_proto,
    evidence_to_proto,
    granted_from_proto,
    limits_from_proto,
    limits_to_proto,
    stage_times_from_proto,
    stage_times_to_proto,
)
from skillcell.wire.requests import fingerprint, spec_from_proto, spec_to_proto
from skillcell.wire.skills import (
    finding_from_proto,
    finding_to_proto,
    short_names,
    skill_version_from_proto,
    skill_version_to_proto,
)
from skillcell.wire.usage import usage_from_proto, usage_to_proto

__all__ = [
    "EventEncoder",
    "Offsets",
    "Pinned",
    "UnknownValue",
    "completed_from_proto",
    "completed_to_proto",
    "event_from_proto",
    "event_to_proto",
    "evidence_from_proto",
    "evidence_to_proto",
    "execution_to_proto",
    "finding_from_proto",
    "finding_to_proto",
    "fingerprint",
    "granted_from_proto",
    "limits_from_proto",
    "limits_to_proto",
    "short_names",
    "skill_version_from_proto",
    "skill_version_to_proto",
    "spec_from_proto",
    "spec_to_proto",
    "stage_times_from_proto",
    "stage_times_to_proto",
    "usage_from_proto",
    "usage_to_proto",
]
