"""The spine: plan → admit → lease → run → settle. Read this first.

A call has two lives. Until it is admitted a refusal is a `Fault` and leaves no trace. Once it is admitted it is
carried out by a task of its own, whoever listens (`watching.py`), and ends in exactly one settled usage record and
one `Completed` event; nothing that goes wrong after that point is raised to a caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import structlog

from skillcell.core import events, ids
from skillcell.core.clock import Clock
from skillcell.core.completion import to_completion
from skillcell.core.content import StoredContent
from skillcell.core.errors import Fault, FaultKind, unavailable
from skillcell.core.plan import Plan
from skillcell.core.records import Admission
from skillcell.core.steps import Step, Steps, pass_by
from skillcell.core.types import (
    CancelReason,
    ExecutionRequest,
    ExecutionState,
    FaultParty,
    Outcome,
    Principal,
    StageTimes,
    UsageRecord,
)
from skillcell.doubts import Doubts
from skillcell.live import Codec, Execution, LiveExecutions
from skillcell.metering.ledger import Ledger
from skillcell.sandbox.job import ArtifactSink, Job, RunReport, Stop
from skillcell.sandbox.live_input import LiveInput
from skillcell.sandbox.outputs import Check, CheckedOutputs
from skillcell.sandbox.prepare import job_for
from skillcell.sandbox.supervisor import Outlets, Run
from skillcell.sandbox.verdict import Rules, Verdict, judge
from skillcell.scheduler.capacity import OnQueued
from skillcell.scheduler.leases import Lease
from skillcell.settlement import Seen, log_line, settlement_of
from skillcell.storage.spool import Spool

log = structlog.get_logger("skillcell.execution")
T = TypeVar("T")
_SETTLE_PAUSES = (0.05, 5.0)
"""Seconds: the first and the longest pause between tries to settle while the ledger can't be written."""
_DRAINED_SECONDS = 60.0
"""How long canceled calls may take to be settled at the end; what is open then, the next start settles."""


class Planner(Protocol):
    """Every check that can refuse a call. Raises Fault."""

    async def plan(self, principal: Principal, request: ExecutionRequest) -> Plan: ...


class LeaseSource(Protocol):
    """Sandboxes. `check` refuses what can't be had at all; `lease` waits its turn, and destroys on every way out."""

    async def check(self, plan: Plan) -> None: ...

    def lease(self, plan: Plan, on_queued: OnQueued, *, cold: bool) -> AbstractAsyncContextManager[Lease]: ...


class UploadSource(Protocol):
    """Inputs that were sent ahead. What `hold` gives stays until `release`, whatever expires meanwhile."""

    async def hold(self, execution_id: str, tenant: str, digests: Collection[str]) -> Mapping[str, StoredContent]:
        """Raises Fault, and holds nothing, when one is gone or can't be held."""
        ...

    async def release(self, execution_id: str) -> None: ...


class Observer(Protocol):
    """Hears of what was settled, for metrics; must not raise."""

    def observe(self, record: UsageRecord) -> None: ...


@dataclass(frozen=True, slots=True)
class Gateway:
    """Who this process is, for the rows it writes."""

    instance_id: str
    boot_id: str
    driver: str


@dataclass(frozen=True, slots=True)
class Stages:
    """What the spine is strung from; `app.py` builds it."""

    planner: Planner
    leases: LeaseSource
    uploads: UploadSource
    ledger: Ledger
    observer: Observer
    new_codec: Callable[[Plan, str], Codec]
    new_spool: Callable[[str], Spool]
    artifacts: Callable[[str], ArtifactSink]
    output_check: Callable[[Plan], Check | None]
    steps: Steps = pass_by


class Executor:
    """Starts calls and carries them out."""

    def __init__(self, stages: Stages, live: LiveExecutions, gateway: Gateway, clock: Clock) -> None:
        self._stages = stages
        self._live = live
        self._gateway = gateway
        self._clock = clock
        self._tasks: set[asyncio.Task[Any]] = set()
        self._draining = False
        self._doubts = Doubts(stages.ledger)

    @property
    def draining(self) -> bool:
        """Whether new calls are refused because this process is about to end."""
        return self._draining

    async def start(
        self,
        principal: Principal,
        request: ExecutionRequest,
        *,
        attached: bool,
        live_input: LiveInput | None = None,
        on_admitted: Callable[[str], None] | None = None,
    ) -> str:
        """Plan and admit. Returns the execution's id once its row is durable; on a Fault nothing has happened.

        `attached`: a reader follows at once, so that a full spool waits for it. `on_admitted` hears the id of a call
        that was made, also where a cancel keeps it from being returned.
        """
        if request.request_id:
            known = await self._stages.ledger.find_request(principal.tenant, request.request_id, request.fingerprint)
            if known is not None and not await self._doubts.withdrawn(known):
                return known
        if self._draining:
            raise unavailable("DRAINING", "this gateway is shutting down; another one can take the call")
        plan = await self.plan(principal, request)
        self._stages.steps(Step.PLANNED)
        return await to_completion(self._admit(plan, attached, live_input, on_admitted))

    async def plan(self, principal: Principal, request: ExecutionRequest) -> Plan:
        """What `start` would pin, without admitting anything. Raises Fault as `start` does."""
        plan = await self._stages.planner.plan(principal, request)
        await self._stages.leases.check(plan)
        return plan

    async def drain(self, within_seconds: float) -> None:
        """Admits nothing more, lets calls finish for a while, cancels the rest, and waits until all are settled."""
        self._draining = True
        try:
            async with asyncio.timeout(within_seconds):
                await self._live.idle()
        except TimeoutError:
            for execution in self._live:
                execution.canceled.cancel(CancelReason.DRAIN)
            try:
                async with asyncio.timeout(_DRAINED_SECONDS):
                    await self._live.idle()
            except TimeoutError:
                log.error("drained_unsettled", unsettled=[execution.id for execution in self._live])

    async def _admit(
        self, plan: Plan, attached: bool, live_input: LiveInput | None, on_admitted: Callable[[str], None] | None
    ) -> str:
        admission, admitted_ns = self._admission(plan), self._clock.monotonic_ns()
        created = False
        uploads = await self._stages.uploads.hold(admission.execution_id, admission.tenant, plan.uploads)
        try:
            admitted = await self._stages.ledger.admit(admission)
            created = admitted.created
        except Fault as fault:
            if fault.kind is FaultKind.UNAVAILABLE:
                self._doubts.begin(admission.execution_id)
            raise
        finally:
            if uploads and not created:
                await self._stages.uploads.release(admission.execution_id)
        self._stages.steps(Step.ADMITTED)
        if created:
            execution = Execution(
                id=admission.execution_id,
                plan=plan,
                admission=admission,
                admitted_ns=admitted_ns,
                spool=self._stages.new_spool(admission.execution_id),
                codec=self._stages.new_codec(plan, admission.execution_id),
                clock=self._clock,
                uploads=uploads,
                live_input=live_input,
                steps=self._stages.steps,
            )
            await execution.spool.expect_reader(attached)
            self._live.add(execution)
            self._spawn(self._carry_out(execution))
            if on_admitted is not None:
                on_admitted(execution.id)
        return admitted.execution.admission.execution_id

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
            plan_version=plan.rate_plan.version if plan.rate_plan else "",
            input_bytes=plan.input_bytes,
            labels=request.labels,
        )

    async def _carry_out(self, execution: Execution) -> None:
        """From admitted to settled; never raises."""
        seen = Seen(RunReport(), _NEVER_RAN)
        try:
            async with AsyncExitStack() as stack:
                if execution.uploads:
                    stack.push_async_callback(self._stages.uploads.release, execution.id)
                try:
                    seen = await self._lease_and_run(execution, stack)
                except Fault as fault:
                    log.warning("execution_fault", execution_id=execution.id, reason=fault.reason, why=fault.message)
                    seen = _lost(execution, fault.message)
                except Exception:
                    log.exception("execution_failed", execution_id=execution.id)
                    seen = _lost(execution, "the gateway failed to carry out the call")
                await self._settle(execution, seen)
            self._stages.steps(Step.DESTROYED)
        except Exception:
            # What is left is the sandbox's end, which the reaper sees to, or a settlement, which the next start does.
            log.exception("execution_unfinished", execution_id=execution.id)
        finally:
            self._live.remove(execution)

    async def _lease_and_run(self, execution: Execution, stack: AsyncExitStack) -> Seen:
        """Runs in a sandbox. One that died while it waited for a call is no call's misfortune: that gets a new one."""
        attempt = await stack.enter_async_context(AsyncExitStack())
        seen = await self._try(execution, attempt)
        if seen.verdict is _DIED_WAITING:
            log.warning("warm_sandbox_was_dead", execution_id=execution.id, why=seen.report.lost)
            await attempt.aclose()
            seen = await self._try(execution, attempt, cold=True)
        return seen

    async def _try(self, execution: Execution, stack: AsyncExitStack, *, cold: bool = False) -> Seen:
        """Waits for a sandbox no longer than the call is wanted, then runs in it."""
        lease = self._stages.leases.lease(execution.plan, _queued(execution), cold=cold)
        leasing = self._spawn(stack.enter_async_context(lease))
        unwanted = self._spawn(execution.canceled.wait())
        try:
            await asyncio.wait({leasing, unwanted}, return_when=asyncio.FIRST_COMPLETED)
            if not leasing.done():
                leasing.cancel()
                await asyncio.wait({leasing})
        finally:
            unwanted.cancel()
        if leasing.cancelled():
            report = RunReport(stop=Stop(cancel=execution.canceled.reason, detail=execution.canceled.detail))
            return Seen(report, judge(report, Rules(execution.plan.limits)))
        return await self._run(execution, leasing.result())

    async def _run(self, execution: Execution, lease: Lease) -> Seen:
        plan = execution.plan
        execution.lease = lease
        self._stages.steps(Step.LEASED)
        outputs = CheckedOutputs(execution, plan.entrypoint, self._stages.output_check(plan))
        run = Run(
            lease.sandbox,
            lease.reader,
            _job(execution, lease),
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
        self._stages.ledger.mark_running(execution.id, lease.sandbox.sandbox_id, execution.now())
        execution.report = run.report
        report = await run.execute()
        if lease.warm and report.lost and not report.started:
            return Seen(report, _DIED_WAITING, lease)
        execution.run_is_over = True
        self._stages.steps(Step.RAN)
        if execution.live_input is not None:
            await execution.live_input.close()
        verdict = judge(report, Rules(plan.limits, plan.lowered, plan.entrypoint.success_codes))
        if verdict.outcome is Outcome.SUCCEEDED:
            await outputs.finish(report.result_json)
            if outputs.violation:
                verdict = Verdict(Outcome.INVALID_OUTPUT, FaultParty.SKILL, outputs.violation)
        return Seen(report, verdict, lease)

    async def _settle(self, execution: Execution, seen: Seen) -> None:
        """Writes the one record, however long the ledger keeps us waiting, then tells the caller."""
        settlement = settlement_of(execution, seen, execution.now(), self._clock.monotonic_ns())
        pause, longest = _SETTLE_PAUSES
        while True:
            try:
                settled = await self._stages.ledger.settle(settlement)
                break
            except Fault as fault:
                log.error("settle_waits", execution_id=execution.id, reason=fault.reason, why=fault.message)
                await asyncio.sleep(pause)
                pause = min(pause * 2, longest)
        self._stages.steps(Step.SETTLED)
        execution.state = ExecutionState.COMPLETED
        self._stages.observer.observe(settled)
        log.info("execution", **log_line(execution, settled))
        last_event = settlement.last_event(settled)
        try:
            await execution.spool.append(last_event, final=True)
        except Fault as fault:
            log.warning("last_event_unkept", execution_id=execution.id, reason=fault.reason, why=fault.message)
            execution.unkept = last_event
        self._stages.steps(Step.TOLD)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


_NEVER_RAN = Verdict(Outcome.NEVER_RAN, FaultParty.PLATFORM, "the call never ran", retryable=True)
_DIED_WAITING = Verdict(Outcome.NEVER_RAN, FaultParty.PLATFORM, "the sandbox died before the call", retryable=True)


def _lost(execution: Execution, message: str) -> Seen:
    """Our failure, with whatever was measured before it."""
    outcome = Outcome.NEVER_RAN if execution.started_at is None else Outcome.PLATFORM_ERROR
    verdict = Verdict(outcome, FaultParty.PLATFORM, message, retryable=True)
    return Seen(execution.report, verdict, execution.lease)


def _job(execution: Execution, lease: Lease) -> Job:
    job = job_for(execution.plan, execution.id, lease.image_env, execution.uploads)
    return replace(job, live_stdin=execution.live_input.items()) if execution.live_input is not None else job


def _queued(execution: Execution) -> OnQueued:
    async def on_queued(position: int) -> None:
        await execution.emit(events.Queued(position))

    return on_queued
