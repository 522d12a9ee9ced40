"""What a step of the machine's clock changes: the day that is written down from then on, and nothing else."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ledger_stores import NOON, admission, ending
from skillcell.core.types import SECOND_NS
from skillcell.core.wall_history import WallHistory
from skillcell.metering.usage import usage_record
from skillcell.retention import Retention

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
STEPS = [HOUR, -HOUR, -DAY, 31 * DAY]


class SteppedClock:
    """Two clocks that a test moves: `sleep` moves both, `step` the wall clock alone."""

    def __init__(self) -> None:
        self.wall, self.monotonic = NOON, 7 * SECOND_NS

    def now(self) -> datetime:
        return self.wall

    def monotonic_ns(self) -> int:
        return self.monotonic

    def sleep(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.monotonic += int(seconds * SECOND_NS)

    def step(self, by: timedelta) -> None:
        self.wall += by


class Kept:
    """A directory of executions, whose files get the time stamps that a kernel with that clock would give them."""

    def __init__(self, root: Path, clock: SteppedClock) -> None:
        self._root, self._clock = root, clock
        self.live: set[str] = set()

    def write(self, name: str) -> None:
        (self._root / name).mkdir(exist_ok=True)
        path = self._root / name / "1.events"
        path.touch()
        stamp = self._clock.wall.timestamp()
        os.utime(path, (stamp, stamp))

    def names(self) -> set[str]:
        return {path.name for path in self._root.iterdir()}


@pytest.mark.parametrize("step", STEPS)
def test_what_is_kept_for_an_hour_is_kept_for_an_hour_whatever_the_clock_does(step: timedelta, tmp_path: Path) -> None:
    clock = SteppedClock()
    kept = Kept(tmp_path, clock)
    retention = Retention((tmp_path,), 3600, kept.live.__contains__, WallHistory(clock))
    kept.live.add("running")
    kept.write("running")
    kept.write("before")
    clock.sleep(50)
    assert retention.collect() == 0
    clock.sleep(5)
    clock.step(step)
    clock.sleep(5)
    kept.write("between")  # after the step, before anybody noticed it
    assert retention.collect() == 0
    for _ in range(57):
        clock.sleep(60)
        retention.collect()
    kept.write("late")
    assert kept.names() == {"running", "before", "between", "late"}
    for _ in range(65):
        clock.sleep(60)
        retention.collect()
    # A stamp that the clock shows twice could be the younger one, for as long as that is not old either.
    assert kept.names() == {"running"} or (kept.names() == {"running", "late"} and step < timedelta())


def test_what_an_earlier_process_kept_goes_by_its_stamp_and_never_stays_for_ever(tmp_path: Path) -> None:
    clock = SteppedClock()
    kept = Kept(tmp_path, clock)
    for name, step in (("old", -2 * HOUR), ("young", -HOUR / 2), ("of the future", 400 * DAY)):
        clock.step(step)
        kept.write(name)
        clock.step(-step)
    retention = Retention((tmp_path,), 3600, kept.live.__contains__, WallHistory(clock))
    assert retention.collect() == 1
    assert kept.names() == {"young", "of the future"}
    clock.sleep(1900)
    retention.collect()
    assert kept.names() == {"of the future"}
    clock.sleep(1900)
    retention.collect()
    assert kept.names() == set()


def test_a_history_of_many_steps_stays_bounded_and_never_makes_anything_older() -> None:
    clock = SteppedClock()
    history = WallHistory(clock)
    for number in range(1000):
        clock.sleep(60)
        clock.step(HOUR if number % 2 else -HOUR)
        history.look()
        assert history.age_ns(int(clock.wall.timestamp() * SECOND_NS)) == 0
    assert len(history._spans) <= 64


@pytest.mark.parametrize("started", [None, NOON + timedelta(seconds=1), NOON - DAY])
def test_no_record_ends_before_it_began(started: datetime | None) -> None:
    record = usage_record(admission(), ending(started_at=started, ended_at=datetime(2026, 2, 28, tzinfo=UTC)))
    assert record.admitted_at <= (record.started_at or record.admitted_at) <= record.ended_at
