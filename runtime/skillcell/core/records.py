"""An execution as it is kept: what is pinned at admission, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from skillcell.core.types import Counters, ExecutionState, FaultParty, Isolation, Limits, Outcome


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


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a running call had used when it was last looked at, and what else only its gateway knew."""

    execution_id: str
    sandbox_id: str
    """Names the sandbox's cgroup too, by a rule of each driver."""
    boot_id: str
    started_at: datetime
    began_ns: int
    """Start of the entrypoint on the monotonic clock of that boot."""
    seen_ns: int
    """When `latest` was read, on the same clock."""
    queue_ns: int = 0
    startup_ns: int = 0
    deliver_ns: int = 0
    output_bytes: int = 0
    at_lease: Counters = Counters()
    """The sandbox's counters when the call got it."""
    latest: Counters = Counters()

    @property
    def run_ns(self) -> int:
        """How long the entrypoint had run."""
        return self.seen_ns - self.began_ns
