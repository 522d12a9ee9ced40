"""Calls that are admitted and not yet settled: what this process holds of each, and how it is found."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from skillcell.core import events
from skillcell.core.clock import Clock
from skillcell.core.content import StoredContent
from skillcell.core.plan import Plan
from skillcell.core.records import Admission
from skillcell.core.steps import Step, Steps, pass_by
from skillcell.core.types import ExecutionState, Principal
from skillcell.sandbox.cancel import Canceled
from skillcell.sandbox.job import RunReport, SinkFull
from skillcell.sandbox.live_input import LiveInput
from skillcell.scheduler.leases import Lease
from skillcell.storage.spool import Spool, SpoolFull


class Codec(Protocol):
    """Events of one execution as bytes, in the form that callers get."""

    def encode(self, sequence: int, time: datetime, event: events.Event) -> bytes: ...


@dataclass(slots=True)
class Execution:
    """A live call."""

    id: str
    plan: Plan
    admission: Admission
    admitted_ns: int
    """The monotonic clock at `admission.admitted_at`."""
    spool: Spool
    codec: Codec
    clock: Clock
    steps: Steps = pass_by
    uploads: Mapping[str, StoredContent] = field(default_factory=dict)
    """What the request named, held for this call alone, by digest."""
    live_input: LiveInput | None = None
    """Stdin and signals that come while it runs; None where the call is not interactive."""
    canceled: Canceled = field(default_factory=Canceled)
    state: ExecutionState = ExecutionState.QUEUED
    started_at: datetime | None = None
    lease: Lease | None = None
    report: RunReport = field(default_factory=RunReport)
    """What was seen of the run, as soon as there is something: it is settled with, whatever fails after."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it is settled and everything of it is gone."""
    run_is_over: bool = False
    """Set once no sandbox waits for what is said: from then on a slow reader holds back nothing of ours."""

    unkept: bytes = b""
    """The last event, where the spool could not take it: those who read get it from here."""

    def now(self) -> datetime:
        """The wall clock of this call: it starts with its admission and never steps, so that no event is before the
        one it follows, nor in another billing period, whatever is done to the machine's clock meanwhile.
        """
        return self.admission.admitted_at + timedelta(
            microseconds=(self.clock.monotonic_ns() - self.admitted_ns) // 1000
        )

    async def emit(self, event: events.Event) -> None:
        """The sink of this call's events. Raises SinkFull."""
        now = self.now()
        if isinstance(event, events.Started):
            self.state, self.started_at = ExecutionState.RUNNING, now
        record = self.codec.encode(self.spool.last_sequence + 1, now, event)
        try:
            await self.spool.append(record, past_limit=self.run_is_over)
            if isinstance(event, events.Started):
                self.steps(Step.STARTED)
        except SpoolFull as full:
            raise SinkFull(self.spool.limit_bytes) from full


class LiveExecutions:
    """All live calls of this process."""

    def __init__(self) -> None:
        self._by_id: dict[str, Execution] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Execution]:
        return iter(tuple(self._by_id.values()))

    def __contains__(self, execution_id: str) -> bool:
        return execution_id in self._by_id

    def add(self, execution: Execution) -> None:
        self._by_id[execution.id] = execution
        self._idle.clear()

    def remove(self, execution: Execution) -> None:
        """It is settled; what was said of it can still be read by those who are reading."""
        self._by_id.pop(execution.id, None)
        execution.spool.release()
        execution.over.set()
        if not self._by_id:
            self._idle.set()

    def get(self, execution_id: str) -> Execution | None:
        """Whoever's it is: for what the gateway itself does."""
        return self._by_id.get(execution_id)

    def find(self, principal: Principal, execution_id: str) -> Execution | None:
        """A live call of this tenant, None when there is none such."""
        execution = self._by_id.get(execution_id)
        if execution is None or execution.plan.principal.tenant != principal.tenant:
            return None
        return execution

    async def idle(self) -> None:
        """Returns when there is none."""
        await self._idle.wait()
