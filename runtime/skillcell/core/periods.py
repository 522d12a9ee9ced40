"""Billing periods: calendar months in UTC, and which of them a record is billed in.

A record belongs to the month in which its call ended, unless that month was closed before the record was settled:
then it belongs to the first month that was still open. The order of settlement, the ledger's sequence, decides what
"before" means, so that no clock can move a record into a closed month.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

_FORM = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")


@dataclass(frozen=True, slots=True, order=True)
class Period:
    """One month; sorts as time does."""

    year: int
    month: int

    @classmethod
    def parse(cls, text: str) -> Period:
        """Of `2026-11`; ValueError for anything else."""
        match = _FORM.fullmatch(text)
        if match is None or not 1 <= int(match[1]) < 9999:
            raise ValueError(f"{text!r} is not a month such as 2026-11")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def of(cls, moment: datetime) -> Period:
        """The month that an aware time lies in, in UTC."""
        at = moment.astimezone(UTC)
        return cls(at.year, at.month)

    @property
    def start(self) -> datetime:
        return datetime(self.year, self.month, 1, tzinfo=UTC)

    @property
    def end(self) -> datetime:
        """The first instant that no longer belongs to it."""
        return self.next.start

    @property
    def next(self) -> Period:
        return Period(self.year + self.month // 12, self.month % 12 + 1)

    def __str__(self) -> str:
        return f"{self.year:04}-{self.month:02}"


@dataclass(frozen=True, slots=True)
class ClosedPeriod:
    """A period that never changes again."""

    period: Period
    last_sequence: int
    """The last record that belongs to it; that of the period before where it has none of its own."""
    closed_at: datetime


@dataclass(frozen=True, slots=True)
class Span:
    """Which records belong to a period: those that ended from `start` to before `end`, and late ones of before
    `start` whose sequence is above `late_after`; of either kind only those up to `last_sequence`.
    """

    start: datetime
    end: datetime
    last_sequence: int | None
    """None while the period is open."""
    late_after: int | None
    """None where no earlier period was closed, or a period between is still open and takes the late ones."""

    @property
    def open(self) -> bool:
        return self.last_sequence is None


def span_of(period: Period, closed: Sequence[ClosedPeriod]) -> Span:
    """`closed` in the order of time. A period that was passed over when a later one was closed is closed and empty."""
    before = next((one for one in reversed(closed) if one.period < period), None)
    itself = next((one for one in closed if one.period == period), None)
    if itself is None and closed and period < closed[-1].period:
        return Span(period.start, period.end, 0, None)
    last_sequence = itself.last_sequence if itself is not None else None
    if before is None:
        return Span(period.start, period.end, last_sequence, None)
    if itself is None and before.period.next != period:
        return Span(period.start, period.end, None, None)
    return Span(before.period.end, period.end, last_sequence, before.last_sequence)
