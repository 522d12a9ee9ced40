"""From what was seen of a run to its outcome: one pure function, so that every verdict can be tested from a table.

The order of the rules is the meaning: what the gateway did comes first (it ended the call, so the exit that followed
is no news), then what the kernel did (an OOM kill behind a failed exit), then what the Skill itself reported. A Skill
that survives an OOM kill of a child, or handles ENOSPC, and exits with success has succeeded.
"""

from __future__ import annotations

import signal as signals
from collections.abc import Collection
from dataclasses import dataclass

from skillcell.core.types import CancelReason, Evidence, FaultParty, Limits, Measurement, Outcome
from skillcell.sandbox.driver import DiskUsage
from skillcell.sandbox.job import RunReport, Stop

_LIMIT_OUTCOMES = {
    "wall_ns": (Outcome.TIMED_OUT, "ns", "gateway monotonic clock"),
    "cpu_ns": (Outcome.CPU_LIMIT_EXCEEDED, "ns", "cgroup CPU time"),
    "output_bytes": (Outcome.OUTPUT_LIMIT_EXCEEDED, "bytes", "gateway byte count"),
}
_CANCEL_FAULT = {
    CancelReason.CLIENT: FaultParty.CALLER,
    CancelReason.DEADLINE: FaultParty.CALLER,
    CancelReason.DISCONNECT: FaultParty.CALLER,
    CancelReason.DRAIN: FaultParty.PLATFORM,
    CancelReason.OPERATOR: FaultParty.PLATFORM,
}
_FREE_BLOCK_BYTES = 64 * 1024
"""A disk with less than this free counts as exhausted: writers ask for blocks, and the last partial one stays free."""
_FREE_FILES = 8
"""The same for files: the agent's own few go when the Skill ends, before anybody looks."""

_NEAR_LIMIT = 16
"""A sandbox that the kernel ended for memory, but that was never within 1/16 of its own limit, was not the one that
used too much: the machine, or the cgroup around all sandboxes, had none left. That is ours."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome with who is at fault and what proves it."""

    outcome: Outcome
    fault: FaultParty
    message: str = ""
    evidence: Evidence | None = None
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """What judging needs besides the report."""

    limits: Limits
    lowered: Collection[str] = ()
    """Names of limits that the caller set below what the Skill would have had: breaking those is the caller's doing."""
    success_codes: Collection[int] = (0,)


def judge(report: RunReport, rules: Rules) -> Verdict:
    """The one outcome of a run."""
    if report.stop is not None:
        return _stopped(report, report.stop, rules)
    if report.lost:
        if report.started and _oom_kills(report):
            return _out_of_memory(report, rules)
        outcome = Outcome.PLATFORM_ERROR if report.started else Outcome.NEVER_RAN
        return Verdict(outcome, FaultParty.PLATFORM, report.lost, retryable=True)
    if not report.started:
        return _never_started(report, rules)
    return _exited(report, rules)


def _stopped(report: RunReport, stop: Stop, rules: Rules) -> Verdict:
    if stop.cancel is not None:
        fault = _CANCEL_FAULT[stop.cancel]
        retryable = fault is FaultParty.PLATFORM
        message = f"canceled: {stop.cancel.value.lower()}" + (f": {stop.detail}" if stop.detail else "")
        return Verdict(Outcome.CANCELED, fault, message, retryable=retryable)
    outcome, unit, source = _LIMIT_OUTCOMES[stop.limit]
    limit = stop.bound if stop.bound is not None else int(getattr(rules.limits, stop.limit))
    evidence = Evidence(stop.limit, limit, stop.observed, unit, source)
    message = f"{stop.limit} reached {stop.observed} {unit}, the limit is {limit} {unit}"
    return Verdict(outcome, _limit_fault(stop.limit, rules), message, evidence)


def _never_started(report: RunReport, rules: Rules) -> Verdict:
    if _oom_kills(report):
        return _out_of_memory(report, rules)
    exhausted = _exhausted(report)
    if exhausted is not None:
        message = f"{report.failed}; the input does not fit the sandbox's writable space"
        return Verdict(Outcome.DISK_LIMIT_EXCEEDED, FaultParty.CALLER, message, exhausted)
    return Verdict(Outcome.NEVER_RAN, FaultParty.PLATFORM, report.failed or "the Skill never started", retryable=True)


def _exited(report: RunReport, rules: Rules) -> Verdict:
    failed = report.signal is not None or report.exit_code not in rules.success_codes
    if not failed:
        return Verdict(Outcome.SUCCEEDED, FaultParty.NONE)
    if _oom_kills(report):
        return _out_of_memory(report, rules)
    exhausted = _exhausted(report)
    if exhausted is not None:
        message = f"failed with {exhausted.limit} exhausted: {exhausted.observed} of {exhausted.limit_value}"
        return Verdict(Outcome.DISK_LIMIT_EXCEEDED, _limit_fault(exhausted.limit, rules), message, exhausted)
    if report.signal is not None:
        name = _signal_name(report.signal)
        evidence = Evidence("signal", 0, report.signal, "code", "agent waitpid", name)
        return Verdict(Outcome.SIGNALED, FaultParty.SKILL, f"ended by {name}", evidence)
    code = report.exit_code if report.exit_code is not None else -1
    evidence = Evidence("exit_code", min(rules.success_codes, default=0), code, "code", "agent waitpid")
    return Verdict(Outcome.FAILED, FaultParty.SKILL, f"exit code {code}", evidence)


def _oom_kills(report: RunReport) -> int:
    return max(0, report.after.oom_kills - report.before.oom_kills)


def _out_of_memory(report: RunReport, rules: Rules) -> Verdict:
    kills = _oom_kills(report)
    limit = rules.limits.memory_bytes
    peak = report.after.memory_peak_bytes
    evidence = Evidence("memory_bytes", limit, peak, "bytes", "cgroup memory", f"oom_kills={kills}")
    if report.after.measurement is Measurement.EXACT and peak < limit - limit // _NEAR_LIMIT:
        outcome = Outcome.PLATFORM_ERROR if report.started else Outcome.NEVER_RAN
        message = f"the machine ran out of memory: the sandbox had used {peak} of {limit} bytes"
        return Verdict(outcome, FaultParty.PLATFORM, message, evidence, retryable=True)
    message = f"out of memory: the kernel ended {kills} process(es) at {peak} of {limit} bytes"
    return Verdict(Outcome.OUT_OF_MEMORY, _limit_fault("memory_bytes", rules), message, evidence)


def _exhausted(report: RunReport) -> Evidence | None:
    """Seen from outside where that was possible, else as the agent saw each writable mount."""
    source, mounts = "statvfs inside the sandbox", report.agent_disk
    if report.disk is not None:
        source, mounts = "statvfs from outside", report.disk.parts or {"": report.disk}
    for target, usage in mounts.items():
        evidence = _exhausted_mount(usage, source, target)
        if evidence is not None:
            return evidence
    return None


def _exhausted_mount(disk: DiskUsage, source: str, detail: str) -> Evidence | None:
    if disk.bytes_limit and disk.bytes_limit - disk.bytes_used < min(_FREE_BLOCK_BYTES, disk.bytes_limit // 16 + 1):
        return Evidence("disk_bytes", disk.bytes_limit, disk.bytes_used, "bytes", source, detail)
    if disk.files_limit and disk.files_limit - disk.files_used < min(_FREE_FILES, disk.files_limit // 16 + 1):
        return Evidence("disk_files", disk.files_limit, disk.files_used, "count", source, detail)
    return None


def _limit_fault(limit: str, rules: Rules) -> FaultParty:
    return FaultParty.CALLER if limit in rules.lowered else FaultParty.SKILL


def _signal_name(number: int) -> str:
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
