"""Where a sink is, as values; and the rows of the store that they are kept in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from skillcell.core.sinks import DeadLetter, HoldCause, SinkState
from skillcell.metering.export.events import Envelope


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a sink is, as `storage/tables_export.py` defines it."""

    name: str
    state: SinkState
    cursor: int
    sent_sequence: int
    sent_at: datetime | None
    sent_as: Envelope
    """Of what is not acknowledged."""
    attempts: int = 0
    last_attempt_at: datetime | None = None
    last_result: str = ""
    refused_in_a_row: int = 0
    hold_cause: HoldCause | None = None
    hold_reason: str = ""
    owner: str = ""
    owned_until: datetime | None = None

    @property
    def unacknowledged(self) -> bool:
        return self.sent_sequence > self.cursor

    def owned_by_another(self, me: str, now: datetime) -> bool:
        return self.owner not in ("", me) and self.owned_until is not None and self.owned_until > now


@dataclass(frozen=True, slots=True)
class Lease:
    """Who delivers to a sink now, where several gateways share the store."""

    owner: str
    now: datetime
    until: datetime


def cursor_of(row: Row[Any]) -> Cursor:
    return Cursor(
        name=row.name,
        state=SinkState(row.state),
        cursor=row.cursor,
        sent_sequence=row.sent_sequence,
        sent_at=row.sent_at,
        sent_as=Envelope(row.source, row.event_type),
        attempts=row.attempts,
        last_attempt_at=row.last_attempt_at,
        last_result=row.last_result,
        refused_in_a_row=row.refused_in_a_row,
        hold_cause=HoldCause(row.hold_cause) if row.hold_cause else None,
        hold_reason=row.hold_reason,
        owner=row.owner,
        owned_until=row.owned_until,
    )


def letter_of(row: Row[Any]) -> DeadLetter:
    return DeadLetter(
        sink=row.sink,
        sequence=row.sequence,
        event_id=row.event_id,
        body=row.body,
        status=row.status,
        reason=row.reason,
        attempts=row.attempts,
        first_at=row.first_at,
        last_at=row.last_at,
        redrive=row.state == "REDRIVE",
    )
