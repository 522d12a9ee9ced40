"""What operators and billers do: tenants, rate plans, closing months, corrections."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import grpc.aio

from skillcell.client.channel import ask, known_values
from skillcell.client.types import ClosedPeriod, Page, PlanVersion
from skillcell.core.corrections import UsageDelta
from skillcell.core.rate_plans import RatePlan
from skillcell.core.tenants import Tenant
from skillcell.core.types import UsageRecord
from skillcell.v1 import admin_pb2 as pb
from skillcell.v1 import admin_pb2_grpc, policy_pb2
from skillcell.wire import usage_from_proto
from skillcell.wire.billing import delta_to_proto, plan_from_proto, plan_to_proto, tenant_from_proto, tenant_to_proto
from skillcell.wire.times import instant_from_proto


class AdminCalls:
    """AdminService of one gateway. All raise SkillcellError."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]) -> None:
        self._stub = admin_pb2_grpc.AdminServiceStub(channel)
        self._metadata = tuple(metadata)

    async def create_tenant(self, tenant: Tenant) -> Tenant:
        """The same again returns the one that exists."""
        request = pb.CreateTenantRequest(tenant=tenant_to_proto(tenant))
        answer = await ask(self._stub.CreateTenant(request, metadata=self._metadata))
        return tenant_from_proto(answer.tenant)

    async def tenant(self, tenant: str) -> Tenant:
        answer = await ask(self._stub.GetTenant(pb.GetTenantRequest(tenant=tenant), metadata=self._metadata))
        return tenant_from_proto(answer.tenant)

    async def tenants(self, *, page_size: int = 0, page_token: str = "") -> Page[Tenant]:
        """By id."""
        request = pb.ListTenantsRequest(page_size=page_size, page_token=page_token)
        answer = await ask(self._stub.ListTenants(request, metadata=self._metadata))
        return Page(tuple(tenant_from_proto(tenant) for tenant in answer.tenants), answer.next_page_token)

    async def update_tenant(self, tenant: Tenant) -> Tenant:
        """As a whole. With its etag it raises Aborted where someone else changed it meanwhile."""
        request = pb.UpdateTenantRequest(tenant=tenant_to_proto(tenant))
        answer = await ask(self._stub.UpdateTenant(request, metadata=self._metadata))
        return tenant_from_proto(answer.tenant)

    async def create_rate_plan(self, plan: RatePlan) -> PlanVersion:
        """Makes it the current version of its name; content that a version has already gives that version."""
        request = pb.CreateRatePlanRequest(plan=plan_to_proto(plan))
        answer = await ask(self._stub.CreateRatePlan(request, metadata=self._metadata))
        return _plan_version(answer.plan)

    async def rate_plans(self, *, name: str = "", page_size: int = 0, page_token: str = "") -> Page[PlanVersion]:
        """Newest first."""
        request = pb.ListRatePlansRequest(name=name, page_size=page_size, page_token=page_token)
        answer = await ask(self._stub.ListRatePlans(request, metadata=self._metadata))
        return Page(tuple(_plan_version(plan) for plan in answer.plans), answer.next_page_token)

    async def close_period(self, period: str) -> ClosedPeriod:
        """Closes a month, `2026-11`, for good. Closing it again changes nothing."""
        request = pb.CloseBillingPeriodRequest(period=period)
        answer = await ask(self._stub.CloseBillingPeriod(request, metadata=self._metadata))
        return ClosedPeriod(period, answer.last_sequence, instant_from_proto(answer.close_time))

    async def correct(
        self, event_id: str, delta: UsageDelta, *, reason: str, request_id: str | None = None
    ) -> UsageRecord:
        """Writes differences to a usage record. `request_id` is a UUID; None makes one, so a retry needs its own."""
        request = pb.RecordCorrectionRequest(
            request_id=str(uuid.uuid4()) if request_id is None else request_id,
            event_id=event_id,
            delta=delta_to_proto(delta),
            reason=reason,
        )
        answer = await ask(self._stub.RecordCorrection(request, metadata=self._metadata))
        with known_values():
            return usage_from_proto(answer.record)


def _plan_version(message: policy_pb2.RatePlan) -> PlanVersion:
    with known_values():
        return PlanVersion(plan_from_proto(message), message.current)
