"""An execution as it is kept: what is pinned at admission, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from skillcell.core.types import ExecutionState, FaultParty, Isolation, Limits, Outcome


@dataclass(frozen=True, slots=True)
class Admission:
    """All that is pinned when a call is admitted: enough to settle it even if nothing else of it survives."""

    execution_id: str
    tenant: str
    request_hash: bytes
    """Over the request as its caller sent it."""
    publisher: str
    skill: str
    """Name without the publisher."""
    version: str
    digest: str
    entrypoint: str
    isolation: Isolation
    driver: str
    limits: Limits
    """Reserved until settlement."""
    admitted_at: datetime
    instance_id: str
    """The gateway that answers for it; its next start settles what was left."""
    boot_id: str
    """Of the machine: monotonic times compare only within one boot."""
    request_id: str = ""
    plan_version: str = ""
    parent_id: str = ""
    root_id: str = ""
    input_bytes: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredExecution:
    """An execution as the store has it. RUNNING shows up to a moment late, and not at all for short calls."""

    admission: Admission
    state: ExecutionState
    sandbox_id: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    outcome: Outcome | None = None
    fault: FaultParty | None = None
    exit_code: int | None = None
    signal: int | None = None
    completed_event: bytes = b""
    """The last event as it was sent; empty until settled."""
    last_event_sequence: int = 0
