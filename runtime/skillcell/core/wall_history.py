"""How old a file is, told by its time stamp although the machine's clock was stepped meanwhile.

Time stamps are of the wall clock, ages are not: a clock that is set forward by a day must not make a fresh file look a
day old, nor one that is set back make it stay for ever. So the wall clock is looked at beside the monotonic one, again
and again, and each step of it begins a new span, in which a stamp means another moment.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from skillcell.core.clock import Clock
from skillcell.core.types import SECOND_NS

_STEP_NS = 2 * SECOND_NS
"""More than this between two looks is a step; less is a clock being slewed."""
_MOST_SPANS = 64


@dataclass(slots=True)
class _Span:
    """From `since_ns` to `until_ns` on the monotonic clock, the wall clock was ahead of it by `offset_ns`."""

    offset_ns: int
    since_ns: int
    until_ns: int


class WallHistory:
    """The spans of this process; `look` at least as often as ages are asked for, since a step shows when it is seen."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        now, offset = self._now()
        self._spans = deque([_Span(offset, now, now)], maxlen=_MOST_SPANS)

    def look(self) -> None:
        """Notes how the clocks stand now."""
        now, offset = self._now()
        last = self._spans[-1]
        if abs(offset - last.offset_ns) > _STEP_NS:
            # When in between it was stepped nobody knows, so that time belongs to both spans.
            self._spans.append(_Span(offset, last.until_ns, now))
        last.until_ns = now

    def age_ns(self, stamp_ns: int) -> int:
        """The least time that can have passed since a file got this time stamp, nanoseconds since 1970."""
        now = self._spans[-1].until_ns
        ages = [
            now - written
            for span in self._spans
            if span.since_ns - _STEP_NS <= (written := stamp_ns - span.offset_ns) <= span.until_ns + _STEP_NS
        ]
        if ages:
            return max(0, min(ages))
        # Nothing of this process's time has that stamp: an earlier one wrote it.
        first = self._spans[0]
        return now - min(first.since_ns, stamp_ns - first.offset_ns)

    def _now(self) -> tuple[int, int]:
        now = self._clock.monotonic_ns()
        return now, int(self._clock.now().timestamp() * 1_000_000) * 1000 - now
