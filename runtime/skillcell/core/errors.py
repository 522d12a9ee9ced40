"""What we could not do, in gRPC's classes but without gRPC.

What a Skill did is never a `Fault`: that is an `Outcome`. A fault's message is safe to show its caller, so it must
never carry a traceback, a host path or another tenant's name. `api/status.py` holds the one table that maps faults to
statuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum


class FaultKind(Enum):
    """The class of a fault; values are gRPC's status names."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    DATA_LOSS = "DATA_LOSS"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing wrong with one field. `field` is its path in the request or document, as `limits.memory_bytes`."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """A quota that refused: its name, its value, and what of it is in use, in the quota's own unit."""

    quota: str
    limit: int
    used: int
    subject: str = ""


@dataclass(eq=False)
class Fault(Exception):
    """A refusal or failure of ours.

    `reason` is stable UPPER_SNAKE_CASE (google.rpc.ErrorInfo, domain `skillcell`), `metadata` holds string facts a
    program may read (field, value, limit). `retry_after` is set only where waiting truly helps. `resource` is
    `type/name`.
    """

    kind: FaultKind
    reason: str
    message: str
    violations: tuple[FieldViolation, ...] = ()
    quotas: tuple[QuotaViolation, ...] = ()
    retry_after: timedelta | None = None
    resource: tuple[str, str] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


def invalid(field_path: str, description: str, *, reason: str = "INVALID_FIELD", **metadata: str) -> Fault:
    """A bad request: `field_path` names the field, `description` says what is wrong, with the value and the limit."""
    return Fault(
        FaultKind.INVALID_ARGUMENT,
        reason,
        f"{field_path}: {description}",
        violations=(FieldViolation(field_path, description),),
        metadata=metadata,
    )


def not_found(resource_type: str, name: str, hint: str = "") -> Fault:
    """Something that is not there, or is not the caller's (which must look the same)."""
    tail = f". {hint}" if hint else ""
    return Fault(
        FaultKind.NOT_FOUND,
        f"{resource_type.upper()}_NOT_FOUND",
        f"{resource_type.replace('_', ' ')} {name!r} was not found{tail}",
        resource=(resource_type, name),
    )


def unavailable(reason: str, message: str, retry_after: timedelta | None = None) -> Fault:
    """We can't now, and may later: engine gone, draining, no capacity."""
    return Fault(FaultKind.UNAVAILABLE, reason, message, retry_after=retry_after)


def precondition(reason: str, message: str, **metadata: str) -> Fault:
    """The request is fine but the state of things forbids it, and a retry alone will not help."""
    return Fault(FaultKind.FAILED_PRECONDITION, reason, message, metadata=metadata)
