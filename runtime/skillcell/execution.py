"""The spine: plan → admit → lease → run → settle. Read this first.

A call has two lives. Until it is admitted a refusal is a `Fault` and leaves no trace. Once it is admitted it is
carried out by a task of its own, whoever listens, and ends in exactly one settled usage record and one `Completed`
event; nothing that goes wrong after that point is raised to a caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol, TypeVar

import structlog

from skillcell.core import events, ids
from skillcell.core.clock import Clock
from skillcell.core.errors import Fault, FaultKind, not_found, unavailable
from skillcell.core.plan import Plan
from skillcell.core.records import Admission, StoredExecution
from skillcell.core.types import (
    CancelReason,
    ExecutionRequest,
    ExecutionState,
    FaultParty,
    OnDisconnect,
    Outcome,
    Principal,
    StageTimes,
    UsageRecord,
)
from skillcell.metering.ledger import Ledger
from skillcell.metering.records import Settlement
from skillcell.metering.usage import Ending, Traffic, usage_record
from skillcell.sandbox.job import ArtifactSink, RunReport, SinkFull
from skillcell.sandbox.outputs import Check, CheckedOutputs
from skillcell.sandbox.prepare import job_for
from skillcell.sandbox.supervisor import Canceled, Outlets, Run
from skillcell.sandbox.verdict import Rules, Verdict, judge
from skillcell.scheduler.capacity import OnQueued
from skillcell.scheduler.leases import Lease
from skillcell.storage.spool import Expired, Spool, SpoolFull

log = structlog.get_logger("skillcell.execution")
T = TypeVar("T")


class Planner(Protocol):
    """Every check that can refuse a call. Raises Fault."""

    async def plan(self, principal: Principal, request: ExecutionRequest) -> Plan: ...


class LeaseSource(Protocol):
    """Sandboxes. `check` refuses what can't be had at all; `lease` waits its turn, and destroys on every way out."""

    async def check(self, plan: Plan) -> None: ...

    def lease(self, plan: Plan, on_queued: OnQueued) -> AbstractAsyncContextManager[Lease]: ...


class Codec(Protocol):
    """Events of one execution as bytes, in the form that callers get."""

    def encode(self, sequence: int, time: datetime, event: events.Event) -> bytes: ...


class Observer(Protocol):
    """Hears of what happened, for metrics; must not raise."""

    def observe(self, record: UsageRecord) -> None: ...


@dataclass(frozen=True, slots=True)
class ExecutorSettings:
    """What an operator may set of the spine."""

    reconnect_seconds: float = 30.0
    """How long a call with a request id waits for a client that went away."""
    spool_bytes: int = 64 << 20
    """How much of one call's events is kept for replay."""
    settle_retry_seconds: tuple[float, float] = (0.05, 5.0)
    """First and longest pause between tries to settle while the ledger can't be written."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """Who this process is, for the rows it writes."""

    instance_id: str
    boot_id: str
    driver: str


@dataclass(slots=True)
class Execution:
    """A live call."""

    id: str
    plan: Plan
    admission: Admission
    admitted_ns: int
    spool: Spool
    codec: Codec
    clock: Clock
    canceled: Canceled = field(default_factory=Canceled)
    state: ExecutionState = ExecutionState.QUEUED
    started_at: datetime | None = None
    completed: events.Completed | None = None
    cancel_timer: asyncio.Task[None] | None = None

    async def emit(self, event: events.Event) -> None:
        """The sink of this call's events; raises SinkFull."""
        if isinstance(event, events.Started):
            self.state = ExecutionState.RUNNING
            self.started_at = self.clock.now()
        final = isinstance(event, events.Completed)
        record = self.codec.encode(self.spool.last_sequence + 1, self.clock.now(), event)
        try:
            await self.spool.append(record, final=final)
        except SpoolFull as error:
            raise SinkFull(self.spool.last_sequence) from error


@dataclass(frozen=True, slots=True)
class Stages:
    """What the spine is strung from; `app.py` builds it."""

    planner: Planner
    leases: LeaseSource
    ledger: Ledger
    observer: Observer
    new_codec: Callable[[Plan, str], Codec]
    new_spool: Callable[[str], Spool]
    kept_spool: Callable[[str], Spool]
    """What is still kept of an execution that has ended; empty when nothing is."""
    artifacts: Callable[[str], ArtifactSink]
    output_check: Callable[[Plan], Check | None]


class Executor:
    """Starts calls, carries them out, and lets others listen."""

    def __init__(self, stages: Stages, gateway: Gateway, clock: Clock, settings: ExecutorSettings) -> None:
        self._stages = stages
        self._gateway = gateway
        self._clock = clock
        self._settings = settings
        self._live: dict[str, Execution] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def live(self) -> int:
        """How many calls are admitted and not yet settled."""
        return len(self._live)

    @property
    def draining(self) -> bool:
        """Whether new calls are refused because this process is about to end."""
        return self._draining

    def is_live(self, execution_id: str) -> bool:
        """Whether this process carries it out now."""
        return execution_id in self._live

    async def start(self, principal: Principal, request: ExecutionRequest, *, attached: bool) -> str:
        """Plan and admit; returns the execution's id once its row is durable. Raises Fault, and then nothing
        happened.
        """
        if request.request_id:
            known = await self._stages.ledger.find_request(principal.tenant, request.request_id, request.fingerprint)
            if known is not None:
                return known
        if self._draining:
            raise unavailable("DRAINING", "this gateway is shutting down; another one can take the call")
        plan = await self.plan(principal, request)
        admission = self._admission(plan)
        return await asyncio.shield(self._spawn(self._admit(plan, admission, attached)))

    async def plan(self, principal: Principal, request: ExecutionRequest) -> Plan:
        """What `start` would pin, without admitting anything. Raises Fault as `start` does."""
        plan = await self._stages.planner.plan(principal, request)
        await self._stages.leases.check(plan)
        return plan

    def refreshed(self, stored: StoredExecution) -> StoredExecution:
        """A stored execution with what this process knows better: the store hears of a start a moment late."""
        execution = self._live.get(stored.admission.execution_id)
        if execution is None or stored.state is ExecutionState.COMPLETED:
            return stored
        return replace(
            stored,
            state=ExecutionState.RUNNING if execution.started_at else ExecutionState.QUEUED,
            started_at=execution.started_at,
            last_event_sequence=execution.spool.last_sequence,
        )

    def find(self, principal: Principal, execution_id: str) -> Execution | None:
        """A live call of this tenant, None when there is none such."""
        execution = self._live.get(execution_id)
        if execution is None or execution.plan.principal.tenant != principal.tenant:
            return None
        return execution

    async def watch(self, principal: Principal, execution_id: str, after: int = 0) -> AsyncGenerator[bytes]:
        """Every encoded event after `after`, live or kept. Raises Fault NOT_FOUND, or OUT_OF_RANGE when expired."""
        execution = self.find(principal, execution_id)
        spool = execution.spool if execution is not None else await self._kept(principal, execution_id)
        try:
            if execution is not None and execution.cancel_timer is not None:
                execution.cancel_timer.cancel()
            async for _, record in spool.read(after):
                yield record
        except Expired as expired:
            raise Fault(
                FaultKind.OUT_OF_RANGE,
                "POSITION_OUT_OF_RANGE",
                f"events up to {expired.first - 1} are no longer kept; read from after_sequence {expired.first - 1}",
                metadata={"first_sequence": str(expired.first)},
            ) from expired
        finally:
            if execution is None:
                spool.release()

    async def reader_left(self, execution_id: str, reason: CancelReason) -> None:
        """A caller of `Execute` went away before the end: cancel, wait for it to come back, or let the call go on."""
        execution = self._live.get(execution_id)
        if execution is None or execution.spool.attached:
            return
        request = execution.plan.request
        if request.on_disconnect is OnDisconnect.DETACH:
            await execution.spool.expect_reader(False)
        elif request.request_id and reason is not CancelReason.DEADLINE:
            execution.cancel_timer = self._spawn(self._cancel_later(execution))
        else:
            execution.canceled.cancel(reason)

    async def cancel(self, principal: Principal, execution_id: str) -> None:
        """Ends a call; no effect on one that has ended. Raises Fault NOT_FOUND."""
        execution = self.find(principal, execution_id)
        if execution is None:
            await self._stages.ledger.get_execution(principal, execution_id)
            return
        execution.canceled.cancel(CancelReason.CLIENT)

    async def drain(self, within_seconds: float) -> None:
        """Admits nothing more, lets calls finish for a while, cancels the rest; all are settled when this returns."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), within_seconds)
        except TimeoutError:
            for execution in list(self._live.values()):
                execution.canceled.cancel(CancelReason.DRAIN)
            await self._idle.wait()

    def _admission(self, plan: Plan) -> Admission:
        version, request = plan.version, plan.request
        return Admission(
            execution_id=ids.execution_id(),
            tenant=plan.principal.tenant,
            publisher=version.publisher,
            skill=version.name,
            version=version.version,
            digest=version.digest,
            entrypoint=plan.entrypoint.name,
            isolation=plan.isolation,
            driver=self._gateway.driver,
            limits=plan.limits,
            admitted_at=self._clock.now(),
            instance_id=self._gateway.instance_id,
            boot_id=self._gateway.boot_id,
            request_id=request.request_id,
            request_hash=request.fingerprint,
            plan_version=plan.rate_plan,
            input_bytes=plan.input_bytes,
            labels=request.labels,
        )

    async def _admit(self, plan: Plan, admission: Admission, attached: bool) -> str:
        """Durable, then launched; a caller that leaves in between must not leave an admitted call that nobody runs."""
        admitted = await self._stages.ledger.admit(admission)
        if admitted.created:
            await self._launch(plan, admission, attached)
        return admitted.execution.admission.execution_id

    async def _launch(self, plan: Plan, admission: Admission, attached: bool) -> None:
        execution = Execution(
            id=admission.execution_id,
            plan=plan,
            admission=admission,
            admitted_ns=self._clock.monotonic_ns(),
            spool=self._stages.new_spool(admission.execution_id),
            codec=self._stages.new_codec(plan, admission.execution_id),
            clock=self._clock,
        )
        self._live[execution.id] = execution
        self._idle.clear()
        self._spawn(self._carry_out(execution))
        await execution.spool.expect_reader(attached)

    async def _carry_out(self, execution: Execution) -> None:
        """From admitted to settled; never raises."""
        try:
            report, verdict, lease = RunReport(), _NEVER_RAN, None
            try:
                async with self._stages.leases.lease(execution.plan, _queued(execution)) as lease:
                    report, verdict = await self._run(execution, lease)
                    await self._settle(execution, lease, report, verdict)
            except Fault as fault:
                log.warning("execution_fault", execution_id=execution.id, reason=fault.reason, message=fault.message)
                verdict = _platform_fault(report, fault.message)
            except Exception:
                log.exception("execution_failed", execution_id=execution.id)
                verdict = _platform_fault(report, "the gateway failed to carry out the call")
            if execution.completed is None:
                await self._settle(execution, lease, report, verdict)
        finally:
            self._live.pop(execution.id, None)
            execution.spool.release()
            if not self._live:
                self._idle.set()

    async def _run(self, execution: Execution, lease: Lease) -> tuple[RunReport, Verdict]:
        plan = execution.plan
        outputs = CheckedOutputs(execution, plan.entrypoint, self._stages.output_check(plan))
        run = Run(
            lease.sandbox,
            lease.reader,
            job_for(plan, execution.id, lease.image_env),
            outlets=Outlets(outputs, self._stages.artifacts(execution.id)),
            canceled=execution.canceled,
            clock=self._clock,
            started_event=events.Started(
                sandbox_id=lease.sandbox.sandbox_id,
                warm=lease.warm,
                driver=lease.driver,
                isolation=plan.isolation,
                limits=plan.limits,
                times=StageTimes(queue_ns=lease.queue_ns, startup_ns=lease.startup_ns),
            ),
        )
        self._stages.ledger.mark_running(execution.id, lease.sandbox.sandbox_id, self._clock.now())
        report = await run.execute()
        rules = Rules(plan.limits, plan.lowered, plan.entrypoint.success_codes)
        verdict = judge(report, rules)
        if verdict.outcome is Outcome.SUCCEEDED:
            await outputs.finish(report.result_json)
            if outputs.violation:
                verdict = Verdict(Outcome.INVALID_OUTPUT, FaultParty.SKILL, outputs.violation)
        return report, verdict

    async def _settle(self, execution: Execution, lease: Lease | None, report: RunReport, verdict: Verdict) -> None:
        """Writes the one record, however long the ledger keeps us waiting, then tells the caller."""
        times = StageTimes(
            queue_ns=lease.queue_ns if lease else 0,
            startup_ns=lease.startup_ns if lease else 0,
            deliver_ns=report.deliver_ns,
            run_ns=report.run_ns,
            collect_ns=report.collect_ns,
            stalled_ns=report.stalled_ns,
        )
        ending = Ending(
            event_id=ids.event_id(),
            outcome=verdict.outcome,
            fault=verdict.fault,
            ended_at=self._clock.now(),
            wall_ns=self._clock.monotonic_ns() - execution.admitted_ns,
            started_at=execution.started_at,
            warm=lease.warm if lease else False,
            exit_code=report.exit_code,
            times=times,
            at_lease=report.before,
            at_end=report.after,
            traffic=Traffic(
                input_bytes=execution.plan.input_bytes,
                output_bytes=report.output_bytes,
                artifact_bytes=report.artifact_bytes,
                disk_bytes=report.disk.bytes_used if report.disk else 0,
            ),
        )
        sequence = execution.spool.last_sequence + 1
        now = self._clock.now()

        def completed(settled: UsageRecord) -> events.Completed:
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
            )

        def seal(settled: UsageRecord) -> bytes:
            return execution.codec.encode(sequence, now, completed(settled))

        settlement = Settlement(
            usage_record(execution.admission, ending),
            signal=report.signal,
            sandbox_id=lease.sandbox.sandbox_id if lease else "",
            last_event=seal,
            last_event_sequence=sequence,
        )
        pause, longest = self._settings.settle_retry_seconds
        while True:
            try:
                settled = await self._stages.ledger.settle(settlement)
                break
            except Fault as fault:
                log.error("settle_waits", execution_id=execution.id, reason=fault.reason, message=fault.message)
                await asyncio.sleep(pause)
                pause = min(pause * 2, longest)
        execution.completed = completed(settled)
        execution.state = ExecutionState.COMPLETED
        self._stages.observer.observe(settled)
        _log_line(execution, settled, verdict)
        await execution.spool.append(seal(settled), final=True)

    async def _cancel_later(self, execution: Execution) -> None:
        await asyncio.sleep(self._settings.reconnect_seconds)
        if not execution.spool.attached:
            execution.canceled.cancel(CancelReason.DISCONNECT)

    async def _kept(self, principal: Principal, execution_id: str) -> Spool:
        stored = await self._stages.ledger.get_execution(principal, execution_id)
        if stored.state is not ExecutionState.COMPLETED:
            raise not_found("execution", execution_id, "it is carried out by another gateway")
        spool = self._stages.kept_spool(execution_id)
        if not spool.last_sequence:
            raise Fault(
                FaultKind.OUT_OF_RANGE,
                "POSITION_OUT_OF_RANGE",
                f"the events of {execution_id} are no longer kept; GetExecution has its outcome",
                metadata={"first_sequence": str(stored.last_event_sequence)},
            )
        return spool

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


_NEVER_RAN = Verdict(Outcome.NEVER_RAN, FaultParty.PLATFORM, "the call never ran", retryable=True)


def _platform_fault(report: RunReport, message: str) -> Verdict:
    outcome = Outcome.PLATFORM_ERROR if report.started else Outcome.NEVER_RAN
    return Verdict(outcome, FaultParty.PLATFORM, message, retryable=True)


def _queued(execution: Execution) -> OnQueued:
    async def on_queued(position: int) -> None:
        await execution.emit(events.Queued(position))

    return on_queued


def _log_line(execution: Execution, record: UsageRecord, verdict: Verdict) -> None:
    log.info(
        "execution",
        execution_id=execution.id,
        tenant=record.tenant,
        skill=f"{record.publisher}/{record.skill}",
        version=record.version,
        entrypoint=record.entrypoint,
        outcome=record.outcome.value,
        fault=verdict.fault.value,
        exit_code=record.exit_code,
        billable=record.billable,
        driver=record.driver,
        isolation=record.isolation.value,
        warm=record.warm,
        queue_ms=round(record.times.queue_ns / 1e6, 3),
        startup_ms=round(record.times.startup_ns / 1e6, 3),
        run_ms=round(record.times.run_ns / 1e6, 3),
        cpu_ms=round(record.cpu_total_ns / 1e6, 3),
        memory_peak_bytes=record.memory_peak_bytes,
        output_bytes=record.output_bytes,
        sequence=record.sequence,
    )
