"""What the store keeps of a call besides its usage record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from skillcell.core.types import ExecutionState, Isolation, Limits, OnDisconnect, Outcome


@dataclass(frozen=True, slots=True)
class Admission:
    """The durable row that is written before any sandbox work: enough to settle the call if everything else is lost."""

    execution_id: str
    tenant: str
    publisher: str
    skill: str
    """Name without the publisher."""
    version: str
    digest: str
    entrypoint: str
    isolation: Isolation
    driver: str
    limits: Limits
    admitted_at: datetime
    instance_id: str
    """Which gateway's data directory owns the call."""
    boot_id: str
    """Boot of the machine, because monotonic times and cgroups don't outlive it."""
    request_id: str = ""
    fingerprint: bytes = b""
    plan_version: str = ""
    on_disconnect: OnDisconnect = OnDisconnect.CANCEL
    input_bytes: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Admitted:
    """The execution that a request has, and whether it was there before."""

    execution_id: str
    existed: bool


@dataclass(frozen=True, slots=True)
class StoredExecution:
    """An execution as the store knows it."""

    admission: Admission
    state: ExecutionState
    sandbox_id: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    outcome: Outcome | None = None
    exit_code: int | None = None
    last_sequence: int = 0
    completed_event: bytes = b""
    """The last event as it went to the caller; empty until there is one."""
