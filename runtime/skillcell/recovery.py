"""At start: settles what an earlier process of this gateway admitted and did not live to settle.

What is left of a sandbox still tells what it used: its cgroup outlives the gateway. Whatever still runs of it is killed
before it is read, so that nothing runs that is not counted. Where nothing is left the last checkpoint stands
(`remains.py`). Either way the call is the platform's failure and is not billed. Only then may the reaper take the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from skillcell.core import events, ids
from skillcell.core.clock import Clock
from skillcell.core.errors import Fault
from skillcell.core.rate_plans import RatePlan
from skillcell.core.records import Admission, Checkpoint, StoredExecution
from skillcell.core.statements import Cost
from skillcell.core.steps import Step, Steps, pass_by
from skillcell.core.types import Measurement, UsageRecord
from skillcell.execution import Observer
from skillcell.live import Codec
from skillcell.metering.ledger import Ledger
from skillcell.metering.rating.cost import cost_of
from skillcell.metering.records import Settlement
from skillcell.metering.usage import usage_record
from skillcell.remains import Moment, Traces, ending_of
from skillcell.sandbox.driver import Driver, Found
from skillcell.storage.spool import Spool

log = structlog.get_logger("skillcell.recovery")
StartOf = Callable[[bytes], tuple[datetime, events.Started] | None]
"""When and how a call started, of an encoded event; None of any other event."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """Run it before calls are admitted and before the first sweep of the reaper; again, where it failed."""

    ledger: Ledger
    driver: Driver
    clock: Clock
    observer: Observer
    new_codec: Callable[[Admission], Codec]
    kept_spool: Callable[[str], Spool]
    start_of: StartOf
    boot_id: str
    plan_of: Callable[[str], Awaitable[RatePlan | None]]
    """A plan by the version that an admission pinned; None where there is none of that name."""
    steps: Steps = pass_by

    async def run(self, instance_id: str) -> int:
        """Settles everything that is open for this gateway, and returns how much that was. Raises Fault: what is
        settled by then stays so, the rest is as it was."""
        left = await self.ledger.unsettled(instance_id)
        if not left:
            return 0
        checkpoints = await self.ledger.checkpoints(instance_id)
        traces = [
            await self._traces(execution, checkpoints.get(execution.admission.execution_id)) for execution in left
        ]
        found = await self._end({trace.sandbox_id for trace in traces if trace.sandbox_id})
        for trace in traces:
            await self._settle(replace(trace, found=found.get(trace.sandbox_id)))
        return len(left)

    async def _traces(self, execution: StoredExecution, checkpoint: Checkpoint | None) -> Traces:
        spool, traces = self.kept_spool(execution.admission.execution_id), Traces(execution, checkpoint)
        try:
            if spool.last_sequence:
                async with aclosing(spool.read(spool.first_sequence - 1)) as records:
                    async for sequence, record in records:
                        start = self.start_of(record)
                        if start is not None:
                            return replace(traces, started_at=start[0], started=start[1])
                        if sequence == spool.last_sequence:
                            break
            return traces
        finally:
            spool.release()

    async def _end(self, sandboxes: set[str]) -> dict[str, Found]:
        """All are dead before the first is settled."""
        there = {found.sandbox_id for found in await self.driver.list()}
        ended = [await self.driver.end(sandbox_id) for sandbox_id in sorted(sandboxes & there)]
        return {found.sandbox_id: found for found in ended if found is not None}

    async def _settle(self, traces: Traces) -> None:
        admission, now = traces.stored.admission, self.clock.now()
        spool = self.kept_spool(admission.execution_id)
        ending = ending_of(traces, ids.event_id(), Moment(now, self.clock.monotonic_ns(), self.boot_id))
        record = replace(usage_record(admission, ending), measurement=Measurement.LOWER_BOUND)
        codec, sequence = self.new_codec(admission), spool.last_sequence + 1
        plan = await self.plan_of(record.plan_version) if record.plan_version else None
        cost = cost_of(record, plan) if plan is not None else None

        def seal(settled: UsageRecord) -> bytes:
            return codec.encode(sequence, now, _completed(settled, cost))

        self.steps(Step.RECOVERY_READ)
        settled = await self.ledger.settle(Settlement(record, seal, sequence, sandbox_id=traces.sandbox_id))
        self.steps(Step.RECOVERY_SETTLED)
        try:
            await spool.append(seal(settled), final=True)
        except Fault as fault:  # the ledger has it too, and replays it from there
            log.warning("last_event_not_spooled", execution_id=admission.execution_id, why=fault.message)
        finally:
            spool.release()
        self.observer.observe(settled)
        log.warning(
            "execution_recovered",
            execution_id=admission.execution_id,
            outcome=settled.outcome.value,
            run_ms=round(settled.times.run_ns / 1e6, 3),
            cpu_ms=round(settled.cpu_total_ns / 1e6, 3),
            cgroup=traces.found is not None and traces.found.counters is not None,
            checkpoint=traces.checkpoint is not None,
        )


def _completed(settled: UsageRecord, cost: Cost | None) -> events.Completed:
    return events.Completed(
        outcome=settled.outcome,
        fault=settled.fault,
        billable=settled.billable,
        retryable=True,
        usage=settled,
        message="the gateway stopped before the call ended",
        cost=cost,
    )
