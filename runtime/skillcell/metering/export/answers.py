"""What a sink's answer means for the events it was sent, and how long to wait. Pure.

An answer is about the events (another answer would come for others), about us (no event would be taken as things
are), or about the moment. Only the first makes dead letters, only the second holds the sink, and only the third is
tried again for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import Enum
from http import HTTPStatus

_ABOUT_THE_EVENTS = frozenset({400, 409, 413, 415, 422})
_ABOUT_THE_MOMENT = frozenset({408, 425, 429})
_LONGEST_WISH = timedelta(days=1)


class Verdict(Enum):
    """What to do. Values are the label `result` of `skillcell_export_attempts_total`."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    """Split what was sent, and put what is refused alone among the dead letters."""
    RETRY = "retry"
    UNREACHED = "unreached"
    """As RETRY: no answer came, so that what was sent may have arrived."""
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request. Without a status none came, and `detail` says why."""

    status: int | None
    retry_after: timedelta | None = None
    detail: str = ""
    """Of the body, or of the failure: short and printable."""

    @property
    def verdict(self) -> Verdict:
        if self.status is None:
            return Verdict.UNREACHED
        if 200 <= self.status < 300:
            return Verdict.ACCEPTED
        if self.status in _ABOUT_THE_EVENTS:
            return Verdict.REFUSED
        if self.status in _ABOUT_THE_MOMENT or self.status >= 500:
            return Verdict.RETRY
        return Verdict.HOLD

    def __str__(self) -> str:
        if self.status is None:
            return self.detail
        try:
            words = f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            words = str(self.status)
        return f"{words}: {self.detail}" if self.detail else words


@dataclass(frozen=True, slots=True)
class BackOff:
    """Waits between attempts, doubling from `first` to `longest`."""

    first: timedelta
    longest: timedelta

    def wait(self, attempts: int, chance: float, wish: timedelta | None = None) -> timedelta:
        """After that many failures in a row; `chance` in [0, 1) spreads it over its upper half. `wish` is the sink's
        Retry-After: never less than that, unless it is over a day."""
        # Past 2^32 times the first wait no bound is left to double towards.
        doubled: int = 1 << min(max(attempts, 1) - 1, 32)
        full = min(self.longest, self.first * doubled)
        return max(full * (0.5 + chance / 2), min(wish or timedelta(), _LONGEST_WISH))


def retry_after(header: str, now: datetime) -> timedelta | None:
    """Of RFC 9110: seconds, or a date; None for anything else."""
    text = header.strip()
    if text.isascii() and text.isdigit():
        return timedelta(seconds=min(int(text[:9]), 10**8))
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(timedelta(), when - now)


def forgotten(sent_at: datetime | None, now: datetime, window: timedelta | None, timeout: timedelta) -> bool:
    """Whether a sink may have forgotten by the time a request arrives what it was sent first at `sent_at`."""
    return sent_at is not None and window is not None and now + timeout >= sent_at + window
