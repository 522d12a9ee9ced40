"""At start: settles what an earlier process of this gateway admitted and did not live to settle.

What is left of a sandbox still tells what it used: its cgroup outlives the gateway. Where nothing is left the record
says so (`LOWER_BOUND`). Either way the call is the platform's failure and is not billed. Only then may the reaper
take the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from skillcell.core import events, ids
from skillcell.core.clock import Clock
from skillcell.core.records import Admission, StoredExecution
from skillcell.core.steps import Step, Steps, pass_by
from skillcell.core.types import Counters, FaultParty, Measurement, Outcome, StageTimes, UsageRecord
from skillcell.execution import Observer
from skillcell.live import Codec
from skillcell.metering.ledger import Ledger
from skillcell.metering.records import Settlement
from skillcell.metering.usage import Ending, usage_record
from skillcell.sandbox.driver import Driver
from skillcell.storage.spool import Spool

log = structlog.get_logger("skillcell.recovery")
_NOTHING = Counters(measurement=Measurement.LOWER_BOUND)


@dataclass(frozen=True, slots=True)
class Recovery:
    """Run it before calls are admitted and before the first sweep of the reaper."""

    ledger: Ledger
    driver: Driver
    clock: Clock
    observer: Observer
    new_codec: Callable[[Admission], Codec]
    kept_spool: Callable[[str], Spool]
    steps: Steps = pass_by

    async def run(self, instance_id: str) -> int:
        """Settles everything that is open for this gateway, and returns how much that was. Raises Fault."""
        left = await self.ledger.unsettled(instance_id)
        if not left:
            return 0
        remains = {found.sandbox_id: found.counters for found in await self.driver.list()}
        for execution in left:
            await self._settle(execution, remains.get(execution.sandbox_id))
        return len(left)

    async def _settle(self, execution: StoredExecution, counters: Counters | None) -> None:
        admission = execution.admission
        spool = self.kept_spool(admission.execution_id)
        ran = execution.started_at is not None or counters is not None or spool.last_sequence > 0
        ending = Ending(
            event_id=ids.event_id(),
            outcome=Outcome.PLATFORM_ERROR if ran else Outcome.NEVER_RAN,
            fault=FaultParty.PLATFORM,
            ended_at=self.clock.now(),
            wall_ns=max(0, int((self.clock.now() - admission.admitted_at).total_seconds() * 1e9)),
            started_at=execution.started_at,
            times=StageTimes(),
            at_end=counters or _NOTHING,
        )
        record = replace(usage_record(admission, ending), measurement=Measurement.LOWER_BOUND)
        codec, sequence, now = self.new_codec(admission), spool.last_sequence + 1, self.clock.now()

        def seal(settled: UsageRecord) -> bytes:
            return codec.encode(sequence, now, _completed(settled))

        self.steps(Step.RECOVERY_READ)
        settled = await self.ledger.settle(Settlement(record, seal, sequence, sandbox_id=execution.sandbox_id))
        self.steps(Step.RECOVERY_SETTLED)
        await spool.append(seal(settled), final=True)
        spool.release()
        self.observer.observe(settled)
        log.warning("execution_recovered", execution_id=admission.execution_id, outcome=settled.outcome.value)


def _completed(settled: UsageRecord) -> events.Completed:
    return events.Completed(
        outcome=settled.outcome,
        fault=settled.fault,
        billable=settled.billable,
        retryable=True,
        usage=settled,
        message="the gateway stopped before the call ended",
    )
