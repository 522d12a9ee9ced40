"""What a caller sees of a call, in order. Sequence numbers and times are given by the execution's log, not here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from skillcell.core.statements import Cost
from skillcell.core.types import CancelReason, Evidence, FaultParty, Isolation, Limits, Outcome, StageTimes, UsageRecord


@dataclass(frozen=True, slots=True)
class Queued:
    """Waiting for capacity; `position` counts from 1."""

    position: int


@dataclass(frozen=True, slots=True)
class Started:
    """The entrypoint runs."""

    sandbox_id: str
    warm: bool
    driver: str
    isolation: Isolation
    limits: Limits
    times: StageTimes


@dataclass(frozen=True, slots=True)
class Stdout:
    data: bytes


@dataclass(frozen=True, slots=True)
class Stderr:
    data: bytes


@dataclass(frozen=True, slots=True)
class Log:
    """A structured line from the Skill. `level` is one of debug, info, warning, error."""

    level: str
    message: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """`fraction` lies in 0..1, or is None when the Skill does not know."""

    fraction: float | None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """One JSON value, as the Skill wrote it (checked to be JSON)."""

    json: bytes


@dataclass(frozen=True, slots=True)
class Artifact:
    """A regular file that the gateway keeps for the caller."""

    name: str
    size_bytes: int
    sha256: str
    media_type: str


@dataclass(frozen=True, slots=True)
class ArtifactRefused:
    """A file that could not become an artifact, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Completed:
    """The end: always the last event, and there is always one."""

    outcome: Outcome
    fault: FaultParty
    billable: bool
    retryable: bool
    usage: UsageRecord
    exit_code: int | None = None
    signal: int | None = None
    message: str = ""
    evidence: Evidence | None = None
    canceled_by: CancelReason | None = None
    """Set with the outcome CANCELED."""
    cost: Cost | None = None
    """None where no plan rates the call; of nothing where it isn't billable."""


Event = Queued | Started | Stdout | Stderr | Log | Progress | Output | Artifact | ArtifactRefused | Completed
