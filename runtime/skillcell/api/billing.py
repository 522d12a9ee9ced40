"""Statements and payouts between the wire and rating; `UsageService` serves them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from skillcell.admission.tenants import TenantStore
from skillcell.api.scope import RATES_ALL, publisher_in_question, tenant_in_question
from skillcell.core.errors import Fault, invalid
from skillcell.core.periods import Period
from skillcell.core.types import Principal
from skillcell.metering.billing.charges import ChargeExport
from skillcell.metering.billing.statements import Billing
from skillcell.metering.rating.focus import FocusSource
from skillcell.v1 import usage_pb2 as pb
from skillcell.wire.billing import charge_to_proto, payout_to_proto, statement_to_proto


@dataclass(frozen=True, slots=True)
class Charges:
    """Who owes what, and who earns it."""

    billing: Billing
    tenants: TenantStore
    export: ChargeExport

    async def statement(self, principal: Principal, request: pb.GetStatementRequest) -> pb.GetStatementResponse:
        tenant = tenant_in_question(principal, request.tenant, RATES_ALL)
        made = await self.billing.statement(tenant, period_of(request.period), request.currency)
        answer = statement_to_proto(made.statement)
        answer.open, answer.as_of_sequence = made.open, made.as_of_sequence
        answer.currencies.extend(made.currencies)
        return answer

    async def rows(
        self, principal: Principal, request: pb.StreamChargesRequest
    ) -> AsyncIterator[pb.StreamChargesResponse]:
        """A tenant's rows at a time, so that memory holds no more."""
        period = period_of(request.period)
        source = FocusSource(request.provider or "Skillcell", request.region_id, request.region_name)
        if not request.tenant and principal.roles & RATES_ALL:
            tenants = await self.export.tenants(period)
        else:
            tenants = (tenant_in_question(principal, request.tenant, RATES_ALL),)
        for tenant in tenants:
            found = await self.export.charges(tenant, period, source)
            for row in found.rows:
                yield charge_to_proto(row, open_=found.open)

    async def payout(self, principal: Principal, request: pb.GetPayoutRequest) -> pb.GetPayoutResponse:
        publisher = publisher_in_question(principal, request.publisher, await self._publishers(principal))
        made = await self.billing.payout(publisher, period_of(request.period), request.currency)
        answer = payout_to_proto(made.payout)
        answer.open = made.open
        answer.currencies.extend(made.currencies)
        return answer

    async def _publishers(self, principal: Principal) -> frozenset[str]:
        """What the caller publishes as: by its credentials, and by its tenant's entry."""
        try:
            kept = (await self.tenants.get(principal.tenant)).publishers
        except Fault:
            kept = ()
        return (principal.publishers | frozenset(kept)) - {"*"}


def period_of(text: str) -> Period:
    """Of a message that passed validation, which lets the year 0000 through."""
    try:
        return Period.parse(text)
    except ValueError as error:
        raise invalid("period", str(error)) from error
