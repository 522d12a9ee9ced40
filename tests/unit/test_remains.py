"""What a call whose gateway died is settled with."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from contract.test_checkpoints import checkpoint
from ledger_stores import NOON, admission
from skillcell.core.events import Started
from skillcell.core.records import StoredExecution
from skillcell.core.types import (
    Counters,
    ExecutionState,
    FaultParty,
    Isolation,
    Limits,
    Measurement,
    Outcome,
    StageTimes,
)
from skillcell.metering.usage import usage_record
from skillcell.remains import Moment, Traces, ending_of
from skillcell.sandbox.driver import Found

LIMITS = Limits(wall_ns=10_000_000_000, cpu_ns=5_000_000_000, memory_bytes=1 << 26, output_bytes=100)
GIVEN = admission(limits=LIMITS)
NOTED = replace(
    checkpoint(GIVEN),
    output_bytes=70,
    at_lease=Counters(10, 20, 30, 1 << 20, 2),
    latest=Counters(1_000, 500, 1_500, 1 << 22, 4),
)
LATER = Moment(NOON + timedelta(seconds=60), NOTED.began_ns + 3_000_000_000, GIVEN.boot_id)
STARTED = Started("sbx_1", True, "oci", Isolation.STANDARD, LIMITS, StageTimes(queue_ns=5, startup_ns=6))


def traces(state: ExecutionState = ExecutionState.RUNNING, **changes: object) -> Traces:
    return replace(Traces(StoredExecution(GIVEN, state)), **changes)  # type: ignore[arg-type]


def test_without_a_trace_of_a_start_it_never_ran() -> None:
    ending = ending_of(traces(), "evt", LATER)
    assert (ending.outcome, ending.fault, ending.started_at) == (Outcome.NEVER_RAN, FaultParty.PLATFORM, None)
    assert ending.at_end == Counters(measurement=Measurement.LOWER_BOUND)


def test_the_stores_word_on_the_start_stands_only_where_the_machine_went_down() -> None:
    stored = replace(StoredExecution(GIVEN, ExecutionState.RUNNING), started_at=NOON)
    assert ending_of(traces(stored=stored), "evt", LATER).outcome is Outcome.NEVER_RAN
    ending = ending_of(traces(stored=stored), "evt", replace(LATER, boot_id="boot-2"))
    assert (ending.outcome, ending.started_at) == (Outcome.PLATFORM_ERROR, NOON)


def test_a_start_that_was_told_is_a_start() -> None:
    told = traces(started=STARTED, started_at=NOON, found=Found("sbx_1", Counters(1, 2, 3, 4, 5)))
    ending = ending_of(told, "evt", LATER)
    assert (ending.outcome, ending.started_at, ending.warm) == (Outcome.PLATFORM_ERROR, NOON, True)
    assert (ending.times.queue_ns, ending.times.startup_ns, ending.times.run_ns) == (5, 6, 0)
    assert ending.at_end == Counters(1, 2, 3, 4, 5)


def test_with_a_checkpoint_alone_its_figures_stand() -> None:
    ending = ending_of(traces(checkpoint=NOTED), "evt", replace(LATER, boot_id="boot-2"))
    assert (ending.at_lease, ending.at_end) == (NOTED.at_lease, NOTED.latest)
    assert ending.times == StageTimes(queue_ns=1, startup_ns=2, deliver_ns=3, run_ns=NOTED.run_ns)
    assert ending.traffic.output_bytes == 70
    record = usage_record(GIVEN, ending)
    assert (record.cpu_total_ns, record.cpu_user_ns, record.memory_peak_bytes) == (1_470, 990, 1 << 22)
    assert not record.billable


@pytest.mark.parametrize(
    ("left", "seen"),
    [
        (Counters(2_000, 900, 2_900, 1 << 23, 3), Counters(2_000, 900, 2_900, 1 << 23, 4)),
        (Counters(1, 1, 2, 1, 1), NOTED.latest),
        (None, NOTED.latest),
    ],
)
def test_the_cgroup_stands_where_it_tells_more_than_the_checkpoint(left: Counters | None, seen: Counters) -> None:
    assert ending_of(traces(checkpoint=NOTED, found=Found("sbx_1", left)), "evt", LATER).at_end == seen


def test_what_still_ran_is_timed_until_now_on_the_clock_of_the_same_boot() -> None:
    alive = traces(checkpoint=NOTED, found=Found("sbx_1", None, alive=True))
    assert ending_of(alive, "evt", LATER).times.run_ns == 3_000_000_000
    assert ending_of(alive, "evt", replace(LATER, boot_id="boot-2")).times.run_ns == NOTED.run_ns
    dead = traces(checkpoint=NOTED, found=Found("sbx_1", None))
    assert ending_of(dead, "evt", LATER).times.run_ns == NOTED.run_ns


def test_nothing_goes_past_what_the_limits_allow() -> None:
    wild = Counters(9 * LIMITS.cpu_ns, 9 * LIMITS.cpu_ns, 18 * LIMITS.cpu_ns, 1 << 40, 7)
    long = replace(LATER, monotonic_ns=NOTED.began_ns + 90 * LIMITS.wall_ns)
    noted = replace(NOTED, output_bytes=1 << 50)
    ending = ending_of(traces(checkpoint=noted, found=Found("sbx_1", wild, alive=True)), "evt", long)
    record = usage_record(GIVEN, ending)
    assert record.times.run_ns == LIMITS.wall_ns
    assert (record.cpu_total_ns, record.memory_peak_bytes) == (LIMITS.cpu_ns, LIMITS.memory_bytes)
    assert record.cpu_user_ns <= LIMITS.cpu_ns
    assert record.output_bytes == LIMITS.output_bytes
