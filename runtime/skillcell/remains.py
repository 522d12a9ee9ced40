"""From what is left of a call whose gateway died to how it ended: pure, like `settlement.py`.

What was measured is a lower bound, because nobody saw the end: the cgroup's counters where it outlived the gateway,
else the last checkpoint, else nothing; never less than a checkpoint says, never more than the limits allowed. Time is
taken from one monotonic clock alone: that of the boot in which the call began.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from skillcell.core import events
from skillcell.core.records import Checkpoint, StoredExecution
from skillcell.core.types import Counters, FaultParty, Limits, Measurement, Outcome, StageTimes
from skillcell.metering.usage import Ending, Traffic
from skillcell.sandbox.driver import Found


@dataclass(frozen=True, slots=True)
class Moment:
    """When it is looked at, on all clocks."""

    now: datetime
    monotonic_ns: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class Traces:
    """All that is left of one execution."""

    stored: StoredExecution
    checkpoint: Checkpoint | None = None
    started: events.Started | None = None
    """As it was told to the caller."""
    started_at: datetime | None = None
    found: Found | None = None
    """Its sandbox, every process of which is dead by now."""

    @property
    def sandbox_id(self) -> str:
        """Empty when it never had one, as far as is known."""
        if self.checkpoint is not None:
            return self.checkpoint.sandbox_id
        return self.started.sandbox_id if self.started is not None else self.stored.sandbox_id


def ending_of(traces: Traces, event_id: str, moment: Moment) -> Ending:
    """The platform's failure, with what is known of its usage."""
    admission, checkpoint = traces.stored.admission, traces.checkpoint
    started_at = _started_at(traces, moment)
    ending = Ending(
        event_id=event_id,
        outcome=Outcome.NEVER_RAN,
        fault=FaultParty.PLATFORM,
        ended_at=moment.now,
        wall_ns=max(0, int((moment.now - admission.admitted_at).total_seconds() * 1e9)),
        times=_times(traces, moment),
        at_end=Counters(measurement=Measurement.LOWER_BOUND),
    )
    if started_at is None:
        return ending
    return replace(
        ending,
        outcome=Outcome.PLATFORM_ERROR,
        started_at=started_at,
        warm=traces.started.warm if traces.started is not None else False,
        at_lease=checkpoint.at_lease if checkpoint is not None else Counters(),
        at_end=_counters(traces),
        traffic=Traffic(
            output_bytes=min(checkpoint.output_bytes, admission.limits.output_bytes) if checkpoint is not None else 0
        ),
    )


def _started_at(traces: Traces, moment: Moment) -> datetime | None:
    """None when the entrypoint was not started. Within one boot the kept events are sure to tell that it was; a machine
    that went down may have lost them, and then the store's word stands, which comes a little before the start."""
    if traces.checkpoint is not None:
        return traces.checkpoint.started_at
    if traces.started_at is not None:
        return traces.started_at
    return None if traces.stored.admission.boot_id == moment.boot_id else traces.stored.started_at


def _times(traces: Traces, moment: Moment) -> StageTimes:
    checkpoint = traces.checkpoint
    if checkpoint is None:
        return traces.started.times if traces.started is not None else StageTimes()
    alive = traces.found is not None and traces.found.alive and checkpoint.boot_id == moment.boot_id
    last_ns = moment.monotonic_ns if alive else checkpoint.seen_ns
    return StageTimes(
        queue_ns=checkpoint.queue_ns,
        startup_ns=checkpoint.startup_ns,
        deliver_ns=checkpoint.deliver_ns,
        run_ns=min(max(0, last_ns - checkpoint.began_ns), traces.stored.admission.limits.wall_ns),
    )


def _counters(traces: Traces) -> Counters:
    noted = traces.checkpoint.latest if traces.checkpoint is not None else None
    left = traces.found.counters if traces.found is not None else None
    known = [counters for counters in (left, noted) if counters is not None]
    if not known:
        return Counters(measurement=Measurement.LOWER_BOUND)
    most = max(known, key=lambda counters: counters.cpu_total_ns)
    seen = replace(
        most,
        memory_peak_bytes=max(counters.memory_peak_bytes for counters in known),
        pids_peak=max(counters.pids_peak for counters in known),
        oom_kills=max(counters.oom_kills for counters in known),
    )
    return _within(seen, traces.stored.admission.limits, traces.checkpoint)


def _within(seen: Counters, limits: Limits, checkpoint: Checkpoint | None) -> Counters:
    """The gateway was no longer there to end it at its limit on CPU time; the kernel holds the others."""
    before = checkpoint.at_lease if checkpoint is not None else Counters()
    return replace(
        seen,
        cpu_user_ns=min(seen.cpu_user_ns, before.cpu_user_ns + limits.cpu_ns),
        cpu_system_ns=min(seen.cpu_system_ns, before.cpu_system_ns + limits.cpu_ns),
        cpu_total_ns=min(seen.cpu_total_ns, before.cpu_total_ns + limits.cpu_ns),
        memory_peak_bytes=min(seen.memory_peak_bytes, limits.memory_bytes),
    )
