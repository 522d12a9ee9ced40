"""A sink as it is shown: what it has taken of the ledger, why it takes no more, what it refused."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum


class SinkMode(Enum):
    """How events travel: CloudEvents' structured mode has one to a request, its batch mode many."""

    STRUCTURED = "STRUCTURED"
    BATCH = "BATCH"


class SinkState(Enum):
    """Whether the gateway delivers."""

    RUNNING = "RUNNING"
    HELD = "HELD"
    """Waits for an operator; nothing is sent until `resume`."""
    REMOVED = "REMOVED"
    """Kept from earlier, and no longer in the settings."""


class HoldCause(Enum):
    """Why a sink is held."""

    DEDUPLICATION_WINDOW = "DEDUPLICATION_WINDOW"
    """Something was sent, never acknowledged, and the sink may have forgotten it: sent again, it could count twice."""
    SINK_REFUSED = "SINK_REFUSED"
    """An answer that is about us, not about an event: bad credentials, wrong address, a redirect."""
    EVERYTHING_REFUSED = "EVERYTHING_REFUSED"
    """Too many events in a row were refused one by one; the fault is hardly theirs."""
    LEDGER_BROKEN = "LEDGER_BROKEN"
    """The next record is not what was hashed when it was settled."""


class ResumeChoice(Enum):
    """What becomes of that which was sent and never acknowledged."""

    RESEND = "RESEND"
    """Send it again: the operator has seen that the sink does not have it, or will not count it twice."""
    SKIP = "SKIP"
    """Take it as delivered: the operator has seen that the sink has it."""


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """One sink. `unacknowledged` is how many records were sent, at least once, without an answer that was kept."""

    name: str
    state: SinkState
    last_sequence: int
    """Everything up to here was acknowledged, or is a dead letter."""
    sent_sequence: int
    """The last record that was sent; at least `last_sequence`."""
    lag_records: int
    """Records of the ledger behind `last_sequence`."""
    dead_letters: int
    source: str
    """`source` of its events."""
    event_type: str
    url: str = ""
    """Without a query, which may hold credentials; empty where the sink was removed."""
    mode: SinkMode | None = None
    hold_cause: HoldCause | None = None
    hold_reason: str = ""
    unacknowledged_since: datetime | None = None
    """When the oldest of what is not acknowledged was sent first."""
    attempts: int = 0
    """Attempts since the last success."""
    last_attempt_at: datetime | None = None
    last_result: str = ""

    @property
    def unacknowledged(self) -> int:
        return self.sent_sequence - self.last_sequence


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that a sink refused, with the bytes that were sent."""

    sink: str
    sequence: int
    event_id: str
    body: bytes
    status: int
    """HTTP status of the last refusal."""
    reason: str
    attempts: int
    first_at: datetime
    last_at: datetime
    redrive: bool = False
    """Whether it waits to be sent again."""
