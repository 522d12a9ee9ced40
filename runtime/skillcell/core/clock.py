"""Time as one value that comes in from outside, so that tests own it.

Durations and bills use `monotonic_ns`; `now` is for people and records and may step.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Two clocks: one never steps, one names the day."""

    def monotonic_ns(self) -> int:
        """Nanoseconds that never go back; comparable only within one boot."""
        ...

    def now(self) -> datetime:
        """The wall clock, aware, in UTC."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def now(self) -> datetime:
        return datetime.now(UTC)
