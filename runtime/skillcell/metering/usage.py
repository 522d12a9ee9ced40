"""From what was seen of one call to its usage record: arithmetic alone, no clock, no store.

Time is billed by the millisecond, rounded up once per call. CPU is the difference between two readings of the kernel's
counters; readings that can't be of one sandbox make the figure a lower bound rather than a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from skillcell.core.records import Admission
from skillcell.core.types import Counters, FaultParty, Measurement, Outcome, StageTimes, UsageRecord
from skillcell.metering.canonical import SCHEMA_VERSION

_MILLISECOND_NS = 1_000_000
_NEVER_BILLED = frozenset({Outcome.PLATFORM_ERROR, Outcome.NEVER_RAN})
_CERTAINTY = (Measurement.LOWER_BOUND, Measurement.SELF_REPORTED, Measurement.SAMPLED, Measurement.EXACT)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one call, each counted by the gateway."""

    input_bytes: int = 0
    output_bytes: int = 0
    artifact_bytes: int = 0
    egress_in_bytes: int = 0
    egress_out_bytes: int = 0
    disk_bytes: int = 0
    """Most that lay in writable directories, as far as it was seen."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ended and what was measured of it."""

    event_id: str
    outcome: Outcome
    fault: FaultParty
    ended_at: datetime
    wall_ns: int
    """Admission to settlement on the monotonic clock."""
    started_at: datetime | None = None
    warm: bool = False
    exit_code: int | None = None
    times: StageTimes = StageTimes()
    at_lease: Counters = Counters()
    """The sandbox's counters when the call got it."""
    at_end: Counters = Counters()
    """The same after its last process had died."""
    traffic: Traffic = Traffic()


def is_billable(outcome: Outcome, fault: FaultParty) -> bool:
    """Whatever is the platform's doing, a cancel by drain or operator included, is recorded and never billed."""
    return outcome not in _NEVER_BILLED and fault is not FaultParty.PLATFORM


def billed_milliseconds(run_ns: int) -> int:
    """Rounded up, exactly."""
    return -(-run_ns // _MILLISECOND_NS)


def usage_record(admission: Admission, ending: Ending) -> UsageRecord:
    """The record to settle; `sequence` and hashes are still empty."""
    billable = is_billable(ending.outcome, ending.fault)
    cpu = cpu_between(ending.at_lease, ending.at_end)
    traffic, run_ns = ending.traffic, ending.times.run_ns
    started_at = None if ending.started_at is None else max(ending.started_at, admission.admitted_at)
    exact = cpu.measurement is Measurement.EXACT
    used_bytes = ending.at_end.memory_peak_bytes if exact else admission.limits.memory_bytes
    return UsageRecord(
        event_id=ending.event_id,
        execution_id=admission.execution_id,
        request_id=admission.request_id,
        parent_id=admission.parent_id,
        root_id=admission.root_id or admission.execution_id,
        tenant=admission.tenant,
        publisher=admission.publisher,
        skill=admission.skill,
        version=admission.version,
        digest=admission.digest,
        entrypoint=admission.entrypoint,
        isolation=admission.isolation,
        driver=admission.driver,
        warm=ending.warm,
        outcome=ending.outcome,
        fault=ending.fault,
        billable=billable,
        exit_code=ending.exit_code,
        admitted_at=admission.admitted_at,
        started_at=started_at,
        # A clock that was set back between admission and recovery must not make a record that ends before it began.
        ended_at=max(ending.ended_at, started_at or admission.admitted_at),
        times=ending.times,
        wall_ns=ending.wall_ns,
        billed_ms=billed_milliseconds(ending.times.run_ns) if billable else 0,
        cpu_user_ns=cpu.cpu_user_ns,
        cpu_system_ns=cpu.cpu_system_ns,
        cpu_total_ns=cpu.cpu_total_ns,
        milli_cpus=admission.limits.milli_cpus,
        memory_limit_bytes=admission.limits.memory_bytes,
        memory_peak_bytes=ending.at_end.memory_peak_bytes,
        memory_baseline_bytes=ending.at_lease.memory_peak_bytes,
        memory_limit_byte_ns=admission.limits.memory_bytes * run_ns,
        memory_used_byte_ns=used_bytes * run_ns,
        pids_peak=ending.at_end.pids_peak,
        disk_bytes=traffic.disk_bytes,
        egress_in_bytes=traffic.egress_in_bytes,
        egress_out_bytes=traffic.egress_out_bytes,
        input_bytes=traffic.input_bytes or admission.input_bytes,
        output_bytes=traffic.output_bytes,
        artifact_bytes=traffic.artifact_bytes,
        measurement=cpu.measurement,
        plan_version=admission.plan_version,
        labels=admission.labels,
        schema_version=SCHEMA_VERSION,
    )


def cpu_between(before: Counters, after: Counters) -> Counters:
    """CPU used between two readings, never negative, with the less certain measurement of the two."""
    total = after.cpu_total_ns - before.cpu_total_ns
    measurement = min(before.measurement, after.measurement, key=_CERTAINTY.index)
    return Counters(
        # User and system are the kernel's estimates of a split and may step back by a tick; the total may not.
        cpu_user_ns=max(0, after.cpu_user_ns - before.cpu_user_ns),
        cpu_system_ns=max(0, after.cpu_system_ns - before.cpu_system_ns),
        cpu_total_ns=max(0, total),
        measurement=measurement if total >= 0 else Measurement.LOWER_BOUND,
    )
