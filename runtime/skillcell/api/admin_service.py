"""AdminService: tenants, rate plans, closing and correcting, sinks. The rest of it answers UNIMPLEMENTED at the edge.

Every act that was carried out leaves a line in the log; what it changed counts for this process's next call.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc.aio
import structlog

from skillcell.admission.tenants import TenantStore
from skillcell.api.billing import period_of
from skillcell.api.edge import caller
from skillcell.api.sinks import SinkDesk
from skillcell.core.clock import Clock
from skillcell.core.corrections import Correction
from skillcell.core.errors import Fault, FieldViolation
from skillcell.core.rate_plans import RatePlan
from skillcell.metering.billing.assignments import Assignments
from skillcell.metering.billing.plans import RatePlanStore
from skillcell.metering.billing.statements import Billing
from skillcell.metering.ledger import Ledger
from skillcell.metering.rating.plan_document import plan_from_document
from skillcell.v1 import admin_pb2 as pb
from skillcell.v1 import admin_pb2_grpc, policy_pb2, sink_pb2
from skillcell.wire.billing import delta_from_proto, plan_to_document, plan_to_proto, tenant_from_proto, tenant_to_proto
from skillcell.wire.requests import request_id_from_proto
from skillcell.wire.times import instant_to_proto
from skillcell.wire.usage import usage_to_proto

log = structlog.get_logger("skillcell.admin")
Context = grpc.aio.ServicerContext[Any, Any]


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """What operators and billers decide."""

    def __init__(
        self,
        tenants: TenantStore,
        plans: RatePlanStore,
        assignments: Assignments,
        billing: Billing,
        ledger: Ledger,
        *,
        sinks: SinkDesk,
        clock: Clock,
    ) -> None:
        self._tenants = tenants
        self._plans = plans
        self._assignments = assignments
        self._billing = billing
        self._ledger = ledger
        self._sinks = sinks
        self._clock = clock

    async def CreateTenant(self, request: pb.CreateTenantRequest, context: Context) -> pb.CreateTenantResponse:
        made = await self._tenants.create(tenant_from_proto(request.tenant), self._clock.now())
        self._assignments.forget()
        _acted("CreateTenant", f"tenant/{made.id}")
        return pb.CreateTenantResponse(tenant=tenant_to_proto(made))

    async def GetTenant(self, request: pb.GetTenantRequest, context: Context) -> pb.GetTenantResponse:
        return pb.GetTenantResponse(tenant=tenant_to_proto(await self._tenants.get(request.tenant)))

    async def ListTenants(self, request: pb.ListTenantsRequest, context: Context) -> pb.ListTenantsResponse:
        page = await self._tenants.list(request.page_size or 50, request.page_token)
        return pb.ListTenantsResponse(
            tenants=[tenant_to_proto(tenant) for tenant in page.tenants], next_page_token=page.next_page_token
        )

    async def UpdateTenant(self, request: pb.UpdateTenantRequest, context: Context) -> pb.UpdateTenantResponse:
        changed = await self._tenants.update(tenant_from_proto(request.tenant))
        self._assignments.forget()
        _acted("UpdateTenant", f"tenant/{changed.id}")
        return pb.UpdateTenantResponse(tenant=tenant_to_proto(changed))

    async def CreateRatePlan(self, request: pb.CreateRatePlanRequest, context: Context) -> pb.CreateRatePlanResponse:
        made = await self._plans.create(_checked(request.plan), self._clock.now())
        self._assignments.forget()
        _acted("CreateRatePlan", f"rate_plan/{made.plan.version}")
        return pb.CreateRatePlanResponse(plan=plan_to_proto(made.plan, current=made.current))

    async def ListRatePlans(self, request: pb.ListRatePlansRequest, context: Context) -> pb.ListRatePlansResponse:
        page = await self._plans.list(request.name, request.page_size or 50, request.page_token)
        return pb.ListRatePlansResponse(
            plans=[plan_to_proto(stored.plan, current=stored.current) for stored in page.plans],
            next_page_token=page.next_page_token,
        )

    async def CloseBillingPeriod(
        self, request: pb.CloseBillingPeriodRequest, context: Context
    ) -> pb.CloseBillingPeriodResponse:
        closed = await self._billing.close(caller(), period_of(request.period), self._clock.now())
        _acted("CloseBillingPeriod", f"period/{closed.period}")
        return pb.CloseBillingPeriodResponse(
            last_sequence=closed.last_sequence, close_time=instant_to_proto(closed.closed_at)
        )

    async def RecordCorrection(
        self, request: pb.RecordCorrectionRequest, context: Context
    ) -> pb.RecordCorrectionResponse:
        request_id = request_id_from_proto(request.request_id)
        correction = Correction(request.event_id, delta_from_proto(request.delta), request.reason, request_id)
        record = await self._ledger.record_correction(caller(), correction, self._clock.now())
        _acted("RecordCorrection", f"usage_record/{record.event_id}")
        return pb.RecordCorrectionResponse(record=usage_to_proto(record))

    async def ListSinks(self, request: pb.ListSinksRequest, context: Context) -> pb.ListSinksResponse:
        return await self._sinks.list()

    async def ResumeSink(self, request: pb.ResumeSinkRequest, context: Context) -> pb.ResumeSinkResponse:
        answer = await self._sinks.resume(request)
        choice = sink_pb2.SinkResumeChoice.Name(request.choice).removeprefix("SINK_RESUME_CHOICE_").lower()
        _acted(
            "ResumeSink", f"sink/{request.name}", choice=choice, records=f"{answer.from_sequence}-{answer.to_sequence}"
        )
        return answer

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, context: Context) -> pb.ListDeadLettersResponse:
        return await self._sinks.dead_letters(request)

    async def RedriveDeadLetters(
        self, request: pb.RedriveDeadLettersRequest, context: Context
    ) -> pb.RedriveDeadLettersResponse:
        answer = await self._sinks.redrive(request)
        _acted("RedriveDeadLetters", f"sink/{request.name}")
        return answer

    async def DiscardDeadLetters(
        self, request: pb.DiscardDeadLettersRequest, context: Context
    ) -> pb.DiscardDeadLettersResponse:
        await self._sinks.discard(request)
        records = ",".join(str(sequence) for sequence in request.sequences)
        _acted("DiscardDeadLetters", f"sink/{request.name}", records=records)
        return pb.DiscardDeadLettersResponse()


def _checked(message: policy_pb2.RatePlan) -> RatePlan:
    """The plan of a request. INVALID_ARGUMENT with the path of everything that is wrong, below `plan`."""
    try:
        return plan_from_document(plan_to_document(message))
    except Fault as fault:
        violations = tuple(
            FieldViolation("plan" if v.field == "plan" else f"plan.{v.field}", v.description) for v in fault.violations
        )
        raise replace(fault, violations=violations) from fault


def _acted(action: str, target: str, **facts: str) -> None:
    principal = caller()
    log.info(
        "admin",
        action=f"AdminService/{action}",
        target=target,
        actor=principal.key_id,
        tenant=principal.tenant,
        **facts,
    )
