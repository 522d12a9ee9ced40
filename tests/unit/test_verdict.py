"""Each outcome is reachable and told apart from the others, with the limit and what was observed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from skillcell.core.types import CancelReason, Counters, FaultParty, Limits, Measurement, Outcome
from skillcell.sandbox.driver import DiskUsage
from skillcell.sandbox.job import RunReport, Stop
from skillcell.sandbox.verdict import Rules, Verdict, judge

LIMITS = Limits()
KILLED = Counters(memory_peak_bytes=LIMITS.memory_bytes, oom_kills=1)
STARVED = Counters(memory_peak_bytes=LIMITS.memory_bytes // 2, oom_kills=1)
FULL = DiskUsage(100 << 20, 100 << 20, 5, 1000)
NO_INODES = DiskUsage(1 << 20, 100 << 20, 1000, 1000)
ROOMY = DiskUsage(1 << 20, 100 << 20, 5, 1000)
CALLER, SKILL, PLATFORM, NONE = FaultParty.CALLER, FaultParty.SKILL, FaultParty.PLATFORM, FaultParty.NONE


def ran(code: int | None = 0, **facts: object) -> RunReport:
    return RunReport(started=True, exited=True, exit_code=code, **facts)  # type: ignore[arg-type]


def stopped(stop: Stop, **facts: object) -> RunReport:
    return RunReport(started=True, stop=stop, **facts)  # type: ignore[arg-type]


TABLE = {
    "success": (ran(), Outcome.SUCCEEDED, NONE, None),
    "exit code": (ran(3), Outcome.FAILED, SKILL, ("exit_code", 0, 3, "code")),
    "no exit code": (ran(None), Outcome.FAILED, SKILL, ("exit_code", 0, -1, "code")),
    "signal": (ran(None, signal=11), Outcome.SIGNALED, SKILL, ("signal", 0, 11, "code")),
    "wall": (
        stopped(Stop("wall_ns", LIMITS.wall_ns + 5)),
        Outcome.TIMED_OUT,
        SKILL,
        ("wall_ns", LIMITS.wall_ns, LIMITS.wall_ns + 5, "ns"),
    ),
    "cpu": (
        stopped(Stop("cpu_ns", LIMITS.cpu_ns + 5)),
        Outcome.CPU_LIMIT_EXCEEDED,
        SKILL,
        ("cpu_ns", LIMITS.cpu_ns, LIMITS.cpu_ns + 5, "ns"),
    ),
    "output": (
        stopped(Stop("output_bytes", 1 << 30)),
        Outcome.OUTPUT_LIMIT_EXCEEDED,
        SKILL,
        ("output_bytes", LIMITS.output_bytes, 1 << 30, "bytes"),
    ),
    "room for events": (
        stopped(Stop("output_bytes", 900, bound=800)),
        Outcome.OUTPUT_LIMIT_EXCEEDED,
        SKILL,
        ("output_bytes", 800, 900, "bytes"),
    ),
    "memory": (
        ran(1, after=KILLED),
        Outcome.OUT_OF_MEMORY,
        SKILL,
        ("memory_bytes", LIMITS.memory_bytes, LIMITS.memory_bytes, "bytes"),
    ),
    "memory by signal": (
        ran(None, signal=9, after=KILLED),
        Outcome.OUT_OF_MEMORY,
        SKILL,
        ("memory_bytes", LIMITS.memory_bytes, LIMITS.memory_bytes, "bytes"),
    ),
    "memory took the agent": (
        RunReport(started=True, lost="gone", after=KILLED),
        Outcome.OUT_OF_MEMORY,
        SKILL,
        ("memory_bytes", LIMITS.memory_bytes, LIMITS.memory_bytes, "bytes"),
    ),
    "memory of the machine": (
        ran(None, signal=9, after=STARVED),
        Outcome.PLATFORM_ERROR,
        PLATFORM,
        ("memory_bytes", LIMITS.memory_bytes, LIMITS.memory_bytes // 2, "bytes"),
    ),
    "memory of the machine took the agent": (
        RunReport(started=True, lost="gone", after=STARVED),
        Outcome.PLATFORM_ERROR,
        PLATFORM,
        ("memory_bytes", LIMITS.memory_bytes, LIMITS.memory_bytes // 2, "bytes"),
    ),
    "memory where the peak is only a sample": (
        ran(1, after=replace(STARVED, measurement=Measurement.SAMPLED)),
        Outcome.OUT_OF_MEMORY,
        SKILL,
        ("memory_bytes", LIMITS.memory_bytes, LIMITS.memory_bytes // 2, "bytes"),
    ),
    "disk": (ran(1, disk=FULL), Outcome.DISK_LIMIT_EXCEEDED, SKILL, ("disk_bytes", 100 << 20, 100 << 20, "bytes")),
    "inodes": (ran(1, disk=NO_INODES), Outcome.DISK_LIMIT_EXCEEDED, SKILL, ("disk_files", 1000, 1000, "count")),
    "one full mount among roomy ones": (
        ran(1, disk=replace(ROOMY, parts={"/tmp": ROOMY, "/workspace": FULL})),
        Outcome.DISK_LIMIT_EXCEEDED,
        SKILL,
        ("disk_bytes", 100 << 20, 100 << 20, "bytes"),
    ),
    "disk as the agent saw it": (
        ran(1, agent_disk={"/tmp": ROOMY, "/workspace": FULL}),
        Outcome.DISK_LIMIT_EXCEEDED,
        SKILL,
        ("disk_bytes", 100 << 20, 100 << 20, "bytes"),
    ),
    "cancel": (stopped(Stop(cancel=CancelReason.CLIENT)), Outcome.CANCELED, CALLER, None),
    "drain": (stopped(Stop(cancel=CancelReason.DRAIN)), Outcome.CANCELED, PLATFORM, None),
    "lost": (RunReport(started=True, lost="gone"), Outcome.PLATFORM_ERROR, PLATFORM, None),
    "lost before the start": (RunReport(lost="gone"), Outcome.NEVER_RAN, PLATFORM, None),
    "refused job": (RunReport(failed="no"), Outcome.NEVER_RAN, PLATFORM, None),
    "input over disk": (
        RunReport(failed="no", disk=FULL),
        Outcome.DISK_LIMIT_EXCEEDED,
        CALLER,
        ("disk_bytes", 100 << 20, 100 << 20, "bytes"),
    ),
    "input over memory": (
        RunReport(failed="no", after=KILLED),
        Outcome.OUT_OF_MEMORY,
        SKILL,
        ("memory_bytes", LIMITS.memory_bytes, LIMITS.memory_bytes, "bytes"),
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_each_ending_has_its_one_outcome_with_evidence(case: str) -> None:
    report, outcome, fault, evidence = TABLE[case]
    verdict = judge(report, Rules(LIMITS))
    assert (verdict.outcome, verdict.fault) == (outcome, fault)
    found = verdict.evidence
    assert (found and (found.limit, found.limit_value, found.observed, found.unit)) == evidence
    assert bool(verdict.message) == (outcome is not Outcome.SUCCEEDED)


def test_every_outcome_of_a_run_is_in_the_table() -> None:
    reached = {outcome for _, outcome, _, _ in TABLE.values()}
    assert set(Outcome) - reached == {Outcome.INVALID_OUTPUT}  # decided by the output check, not by the run


@pytest.mark.parametrize("limit", ["wall_ns", "cpu_ns", "output_bytes"])
def test_a_limit_that_the_caller_lowered_is_the_callers_fault(limit: str) -> None:
    assert judge(stopped(Stop(limit, 1)), Rules(LIMITS, {limit})).fault is CALLER


def test_memory_and_disk_that_the_caller_lowered_are_the_callers_fault() -> None:
    lowered = Rules(LIMITS, {"memory_bytes", "disk_bytes"})
    assert judge(ran(1, after=KILLED), lowered).fault is CALLER
    assert judge(ran(1, disk=FULL), lowered).fault is CALLER
    assert judge(ran(1, disk=NO_INODES), lowered).fault is SKILL


@pytest.mark.parametrize("facts", [{"after": KILLED}, {"disk": FULL}, {"cut_short": "gone"}])
def test_a_skill_that_copes_and_exits_with_success_has_succeeded(facts: dict[str, object]) -> None:
    assert judge(ran(0, **facts), Rules(LIMITS)) == Verdict(Outcome.SUCCEEDED, NONE)


def test_success_codes_are_the_entrypoints() -> None:
    rules = Rules(LIMITS, success_codes=(0, 1))
    assert judge(ran(1), rules).outcome is Outcome.SUCCEEDED
    assert judge(ran(2), rules).outcome is Outcome.FAILED
    assert judge(ran(0), Rules(LIMITS, success_codes=(5,))).outcome is Outcome.FAILED
    assert judge(ran(0, signal=9), rules).outcome is Outcome.SIGNALED


@pytest.mark.parametrize(
    ("facts", "stop"),
    list(
        itertools.product(
            [{"after": KILLED}, {"disk": FULL}, {"exited": True, "exit_code": 0}, {"exited": True, "signal": 9}],
            [Stop("wall_ns", 1), Stop("cpu_ns", 1), Stop("output_bytes", 1), Stop(cancel=CancelReason.CLIENT)],
        )
    ),
)
def test_what_the_gateway_did_comes_before_what_followed_from_it(facts: dict[str, object], stop: Stop) -> None:
    assert judge(stopped(stop, **facts), Rules(LIMITS)) == judge(stopped(stop), Rules(LIMITS))


def test_memory_comes_before_disk_and_disk_before_the_exit() -> None:
    assert judge(ran(1, after=KILLED, disk=FULL), Rules(LIMITS)).outcome is Outcome.OUT_OF_MEMORY
    assert judge(ran(None, signal=25, disk=FULL), Rules(LIMITS)).outcome is Outcome.DISK_LIMIT_EXCEEDED


def test_only_kills_since_the_lease_count() -> None:
    assert judge(ran(1, before=KILLED, after=KILLED), Rules(LIMITS)).outcome is Outcome.FAILED
    assert judge(ran(1, before=KILLED, after=Counters()), Rules(LIMITS)).outcome is Outcome.FAILED


@pytest.mark.parametrize(
    ("used", "limit", "full"),
    [
        (0, 0, False),
        (0, 1 << 20, False),
        ((1 << 20) - 65_536, 1 << 20, False),
        ((1 << 20) - 65_535, 1 << 20, True),
        (950, 1000, True),
        (900, 1000, False),
    ],
)
def test_a_disk_is_full_when_not_even_a_block_is_free(used: int, limit: int, full: bool) -> None:
    verdict = judge(ran(1, disk=DiskUsage(used, limit, 0, 0)), Rules(LIMITS))
    assert (verdict.outcome is Outcome.DISK_LIMIT_EXCEEDED) == full


def test_the_view_from_outside_stands_before_the_agents() -> None:
    assert judge(ran(1, disk=ROOMY, agent_disk={"/workspace": FULL}), Rules(LIMITS)).outcome is Outcome.FAILED


def test_only_the_platforms_faults_are_retryable() -> None:
    for report, _, fault, _ in TABLE.values():
        assert judge(report, Rules(LIMITS)).retryable == (fault is PLATFORM)


def test_an_unknown_signal_is_named_by_its_number() -> None:
    assert judge(ran(None, signal=200), Rules(LIMITS)).message == "ended by signal 200"
