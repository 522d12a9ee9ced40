"""Every record is billed in exactly one month, and a closed month holds the same records for ever."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillcell.core.periods import ClosedPeriod, Period, Span, span_of

FIRST = Period(2025, 11)
MONTHS = [FIRST]
while len(MONTHS) < 12:
    MONTHS.append(MONTHS[-1].next)
AT = datetime(2027, 1, 1, tzinfo=UTC)


@dataclass
class Books:
    """Records by the instants of their ends, in the order of their sequences, and what was closed."""

    ends: list[datetime] = field(default_factory=list)
    closed: list[ClosedPeriod] = field(default_factory=list)

    def of(self, period: Period) -> list[int]:
        span = span_of(period, self.closed)
        return [number for number, end in enumerate(self.ends, 1) if belongs(number, end, span)]

    def close(self, period: Period) -> None:
        """As the store does: in order, and none before one that has usage."""
        if self.closed and period <= self.closed[-1].period:
            return
        if any(self.of(earlier) for earlier in MONTHS if earlier < period and self.is_open(earlier)):
            return
        last = max([*self.of(period), self.closed[-1].last_sequence if self.closed else 0])
        self.closed.append(ClosedPeriod(period, last, AT))

    def is_open(self, period: Period) -> bool:
        return span_of(period, self.closed).open


def belongs(sequence: int, end: datetime, span: Span) -> bool:
    """What `Span` says of itself."""
    own = span.start <= end < span.end
    late = span.late_after is not None and end < span.start and sequence > span.late_after
    return (own or late) and (span.last_sequence is None or sequence <= span.last_sequence)


SETTLE = st.tuples(st.just("settle"), st.integers(0, 8), st.integers(0, 27))
CLOSE = st.tuples(st.just("close"), st.integers(0, 8), st.just(0))


@given(st.lists(st.one_of(SETTLE, SETTLE, CLOSE), max_size=40))
def test_each_record_belongs_to_one_month_and_closed_months_keep_theirs(acts: list[tuple[str, int, int]]) -> None:
    books, kept = Books(), dict[Period, list[int]]()
    for act, month, day in acts:
        if act == "settle":
            books.ends.append(MONTHS[month].start + timedelta(days=day))
        else:
            books.close(MONTHS[month])
        for period in MONTHS:
            if not books.is_open(period):
                assert books.of(period) == kept.setdefault(period, books.of(period))
        found = sorted(number for period in MONTHS for number in books.of(period))
        assert found == list(range(1, len(books.ends) + 1))


def test_a_month_begins_and_ends_in_utc() -> None:
    december = Period.parse("2026-12")
    assert (december.start, december.end) == (datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    assert Period.of(datetime.fromisoformat("2026-12-01T00:30:00+01:00")) == Period(2026, 11)
    assert [str(month) for month in (december, december.next)] == ["2026-12", "2027-01"]


@pytest.mark.parametrize(
    "text", ["", "2026", "2026-1", "2026-13", "2026-00", "0000-01", "9999-12", "2026-11-01", "²026-11"]
)
def test_what_is_no_month_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a month such as 2026-11"):
        Period.parse(text)
