"""The arithmetic of a bill, and the bytes it is chained by."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger_stores import NOON, admission, ending
from skillcell.core.types import Counters, FaultParty, Limits, Measurement, Outcome, StageTimes, UsageRecord
from skillcell.metering.canonical import FIELDS, TIMES, UNCHAINED, canonical, parse
from skillcell.metering.usage import billed_milliseconds, cpu_between, is_billable, usage_record


@pytest.mark.parametrize(("run_ns", "billed"), [(0, 0), (1, 1), (999_999, 1), (1_000_000, 1), (1_000_001, 2)])
def test_run_time_is_billed_by_the_millisecond_rounded_up(run_ns: int, billed: int) -> None:
    assert billed_milliseconds(run_ns) == billed


@pytest.mark.parametrize("outcome", Outcome)
def test_what_the_platform_broke_is_never_billed(outcome: Outcome) -> None:
    assert not is_billable(outcome, FaultParty.PLATFORM)


def test_everything_else_is_billed_but_a_call_that_never_ran_or_was_lost() -> None:
    for fault in (FaultParty.NONE, FaultParty.SKILL, FaultParty.CALLER, FaultParty.QUOTA):
        unbilled = {outcome for outcome in Outcome if not is_billable(outcome, fault)}
        assert unbilled == {Outcome.PLATFORM_ERROR, Outcome.NEVER_RAN}


def test_a_cancel_by_drain_is_recorded_with_its_usage_and_costs_nothing() -> None:
    record = usage_record(admission(), ending(outcome=Outcome.CANCELED, fault=FaultParty.PLATFORM))
    assert (record.billable, record.billed_ms) == (False, 0)
    assert record.times.run_ns == 70_000_001
    assert record.cpu_total_ns == 52_000_000


def test_a_record_holds_what_was_admitted_and_measured() -> None:
    of = admission(labels={"team": "red"}, plan_version="plan-3", limits=Limits(memory_bytes=1 << 30))
    record = usage_record(of, ending(at_lease=Counters(1, 2, 3, 7_000_000, 1), times=StageTimes(run_ns=60 * 10**9)))
    assert record.memory_limit_byte_ns == (1 << 30) * 60 * 10**9 > 1 << 64
    assert (record.memory_baseline_bytes, record.memory_peak_bytes) == (7_000_000, 11_000_000)
    assert record.cpu_total_ns == 51_999_997
    assert record.billed_ms == 60_000
    assert (record.root_id, record.plan_version, record.labels) == (of.execution_id, "plan-3", {"team": "red"})


def test_the_less_certain_of_two_readings_names_the_measurement() -> None:
    used = cpu_between(Counters(measurement=Measurement.SAMPLED), Counters(cpu_total_ns=5))
    assert (used.cpu_total_ns, used.measurement) == (5, Measurement.SAMPLED)


def test_counters_that_went_back_are_a_lower_bound_and_never_negative() -> None:
    used = cpu_between(Counters(9, 9, 18), Counters(4, 10, 14))
    assert (used.cpu_user_ns, used.cpu_system_ns, used.cpu_total_ns) == (0, 1, 0)
    assert used.measurement is Measurement.LOWER_BOUND


def test_every_field_of_a_record_is_chained_or_named_as_left_out() -> None:
    flat = {field.name for field in fields(UsageRecord)} - {"times"} | set(TIMES)
    assert set(FIELDS[1]) == flat - UNCHAINED
    assert list(FIELDS[1]) == sorted(FIELDS[1])


def test_the_canonical_bytes_of_version_1_never_change() -> None:
    of = admission(execution_id="exe_1", request_id="", entrypoint="scripts/é😀.py", labels={"user": "ada"})
    record = replace(usage_record(of, ending(event_id="evt_1")), sequence=7)
    assert canonical(record) == (
        b'{"admitted_at":"2026-03-01T12:00:00.000000Z","artifact_bytes":0,"billable":true,"billed_ms":71,"calls":1,"collect_ns":0,'
        b'"correction_of":"","cpu_system_ns":12000000,"cpu_total_ns":52000000,"cpu_user_ns":40000000,"deliver_ns":0,'
        b'"digest":"sha256:' + b"ab" * 32 + b'","disk_bytes":0,"driver":"oci","egress_in_bytes":5,"egress_out_bytes":3,'
        b'"ended_at":"2026-03-01T12:00:00.075000Z","entrypoint":"scripts/\\u00e9\\ud83d\\ude00.py","event_id":"evt_1",'
        b'"execution_id":"exe_1","exit_code":0,"fault":"NONE","input_bytes":0,"isolation":"STANDARD",'
        b'"measurement":"EXACT","memory_baseline_bytes":0,"memory_limit_byte_ns":18790482188435456,'
        b'"memory_limit_bytes":268435456,"memory_peak_bytes":11000000,"memory_used_byte_ns":770000011000000,"milli_cpus":1000,"outcome":"SUCCEEDED","output_bytes":17,'
        b'"parent_id":"","pids_peak":3,"plan_version":"","publisher":"tools","queue_ns":1000,"request_id":"",'
        b'"root_id":"exe_1","run_ns":70000001,"schema_version":1,"sequence":7,"session_id":"","skill":"extract","stalled_ns":0,'
        b'"started_at":"2026-03-01T12:00:00.005000Z","startup_ns":4000000,"teardown_ns":0,"tenant":"acme",'
        b'"version":"1.2.0","wall_ns":80000000,"warm":false}'
    )
    assert b"ada" not in canonical(record)


@given(
    run_ns=st.integers(0, 10**20),
    entrypoint=st.text(max_size=20),
    microseconds=st.integers(0, 10**15),
    exit_code=st.none() | st.integers(-(2**31), 2**31),
    offset=st.integers(-12, 12),
)
def test_canonical_bytes_read_back_as_the_same_record(
    run_ns: int, entrypoint: str, microseconds: int, exit_code: int | None, offset: int
) -> None:
    ended_at = (NOON + timedelta(microseconds=microseconds)).astimezone(timezone(timedelta(hours=offset)))
    given_ending = ending(times=StageTimes(run_ns=run_ns), ended_at=ended_at, exit_code=exit_code, started_at=None)
    record = replace(usage_record(admission(entrypoint=entrypoint), given_ending), sequence=3)
    assert parse(canonical(record)) == record


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("tenant"),
        lambda document: document.update(extra=1),
        lambda document: document.update(schema_version=2),
        lambda document: document.update(ended_at="2026-03-01T12:00:00Z"),
        lambda document: document.update(outcome="FINE"),
    ],
)
def test_bytes_that_are_not_canonical_are_refused(change: object) -> None:
    document = json.loads(canonical(usage_record(admission(), ending())))
    change(document)  # type: ignore[operator]
    with pytest.raises(ValueError):
        parse(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def test_an_unknown_schema_version_is_never_written() -> None:
    with pytest.raises(ValueError, match="schema_version 2"):
        canonical(replace(usage_record(admission(), ending()), schema_version=2))


def test_naive_times_are_a_bug_and_not_a_guess() -> None:
    from skillcell.storage.columns import to_microseconds

    with pytest.raises(TypeError):
        to_microseconds(datetime(2026, 1, 1))
    assert to_microseconds(datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC)) == -1
