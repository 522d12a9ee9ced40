"""From what was seen of a call to what is settled and told: pure, so that a bill can be read without a sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from skillcell.core import events, ids
from skillcell.core.statements import Cost
from skillcell.core.types import StageTimes, UsageRecord
from skillcell.live import Execution
from skillcell.metering.rating.cost import cost_of
from skillcell.metering.records import Settlement
from skillcell.metering.usage import Ending, Traffic, usage_record
from skillcell.sandbox.job import RunReport
from skillcell.sandbox.verdict import Verdict
from skillcell.scheduler.leases import Lease


@dataclass(frozen=True, slots=True)
class Seen:
    """All that is known when a call is over. `lease` is None when it never had a sandbox."""

    report: RunReport
    verdict: Verdict
    lease: Lease | None = None


def settlement_of(execution: Execution, seen: Seen, now: datetime, now_ns: int) -> Settlement:
    """What the ledger is to write. The last event is sealed into it, so that it can be told again after a crash."""
    report, verdict, lease = seen.report, seen.verdict, seen.lease
    sequence, plan = execution.spool.last_sequence + 1, execution.plan.rate_plan
    limits = execution.admission.limits
    # What a call is stopped for is billed up to its limit: how fast it is stopped is our doing, and an estimate holds.
    run_ns = min(report.run_ns, limits.wall_ns)

    ending = Ending(
        event_id=ids.event_id(),
        outcome=verdict.outcome,
        fault=verdict.fault,
        ended_at=now,
        wall_ns=now_ns - execution.admitted_ns,
        started_at=execution.started_at,
        warm=lease.warm if lease else False,
        exit_code=report.exit_code,
        times=StageTimes(
            queue_ns=lease.queue_ns if lease else now_ns - execution.admitted_ns,
            startup_ns=lease.startup_ns if lease else 0,
            deliver_ns=report.deliver_ns,
            run_ns=run_ns,
            collect_ns=report.collect_ns,
            teardown_ns=report.run_ns - run_ns,
            stalled_ns=min(report.stalled_ns, run_ns),
        ),
        at_lease=report.before,
        at_end=report.after,
        traffic=Traffic(
            input_bytes=execution.plan.input_bytes,
            output_bytes=min(report.output_bytes, limits.output_bytes),
            artifact_bytes=report.artifact_bytes,
            disk_bytes=report.disk.bytes_used if report.disk else 0,
        ),
    )
    record = usage_record(execution.admission, ending)
    # Here, and not where the event is made, since that holds up the ledger's one writer.
    cost = cost_of(record, plan) if plan is not None else None

    def last_event(settled: UsageRecord) -> bytes:
        return execution.codec.encode(sequence, now, completed(seen, settled, cost))

    return Settlement(
        record=record,
        last_event=last_event,
        last_event_sequence=sequence,
        signal=report.signal,
        sandbox_id=lease.sandbox.sandbox_id if lease else "",
    )


def completed(seen: Seen, settled: UsageRecord, cost: Cost | None = None) -> events.Completed:
    """The last event of a call."""
    report, verdict = seen.report, seen.verdict
    return events.Completed(
        outcome=verdict.outcome,
        fault=verdict.fault,
        billable=settled.billable,
        retryable=verdict.retryable,
        usage=settled,
        exit_code=report.exit_code,
        signal=report.signal,
        message=verdict.message,
        evidence=verdict.evidence,
        canceled_by=report.stop.cancel if report.stop else None,
        cost=cost,
    )


def log_line(execution: Execution, record: UsageRecord) -> dict[str, object]:
    """The facts of the one line that each call leaves in the log: never a payload, a label or a secret."""
    times = record.times
    return {
        "execution_id": execution.id,
        "tenant": record.tenant,
        "skill": f"{record.publisher}/{record.skill}",
        "version": record.version,
        "entrypoint": record.entrypoint,
        "outcome": record.outcome.value,
        "fault": record.fault.value,
        "exit_code": record.exit_code,
        "billable": record.billable,
        "driver": record.driver,
        "isolation": record.isolation.value,
        "warm": record.warm,
        "queue_ms": round(times.queue_ns / 1e6, 3),
        "startup_ms": round(times.startup_ns / 1e6, 3),
        "run_ms": round(times.run_ns / 1e6, 3),
        "cpu_ms": round(record.cpu_total_ns / 1e6, 3),
        "memory_peak_bytes": record.memory_peak_bytes,
        "output_bytes": record.output_bytes,
        "sequence": record.sequence,
    }
