"""What tenants owe and publishers earn."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from decimal import Decimal

import grpc.aio

from skillcell.client.channel import ask, listen
from skillcell.client.types import Payout, PayoutLine, Statement, StatementLine
from skillcell.v1 import usage_pb2 as pb
from skillcell.v1 import usage_pb2_grpc


class BillingCalls:
    """The charges of UsageService. Months are `2026-11`, in UTC. All raise SkillcellError."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]) -> None:
        self._stub = usage_pb2_grpc.UsageServiceStub(channel)
        self._metadata = tuple(metadata)

    async def statement(self, period: str, *, tenant: str = "", currency: str = "") -> Statement:
        """One's own, or with the role biller another tenant's; a preview while the month is open.

        `currency` is needed only where plans of several rated the month: `currencies` has them.
        """
        request = pb.GetStatementRequest(tenant=tenant, period=period, currency=currency)
        answer = await ask(self._stub.GetStatement(request, metadata=self._metadata))
        return Statement(
            tenant=answer.tenant,
            period=answer.period,
            open=answer.open,
            currency=answer.currency,
            lines=tuple(
                StatementLine(
                    line.skill, line.meter, Decimal(line.quantity), line.unit, Decimal(line.amount), line.plan_version
                )
                for line in answer.lines
            ),
            total=Decimal(answer.total),
            as_of_sequence=answer.as_of_sequence,
            currencies=tuple(answer.currencies),
        )

    async def payout(self, period: str, *, publisher: str = "", currency: str = "") -> Payout:
        """One's own, or with the role biller another publisher's."""
        request = pb.GetPayoutRequest(publisher=publisher, period=period, currency=currency)
        answer = await ask(self._stub.GetPayout(request, metadata=self._metadata))
        return Payout(
            publisher=answer.publisher,
            period=answer.period,
            open=answer.open,
            currency=answer.currency,
            lines=tuple(
                PayoutLine(
                    line.skill,
                    line.calls,
                    Decimal(line.charged),
                    Decimal(line.publisher_share),
                    Decimal(line.platform_fee),
                )
                for line in answer.lines
            ),
            total=Decimal(answer.total),
            currencies=tuple(answer.currencies),
        )

    async def charges(
        self, period: str, *, tenant: str = "", provider: str = "", region_id: str = "", region_name: str = ""
    ) -> AsyncGenerator[Mapping[str, str], None]:
        """A month's charges as FOCUS 1.2 rows by column, all as text; what is null is left out.

        Without a tenant, every tenant's with the role biller, else one's own.
        """
        request = pb.StreamChargesRequest(
            tenant=tenant, period=period, provider=provider, region_id=region_id, region_name=region_name
        )
        async with aclosing(listen(self._stub.StreamCharges(request, metadata=self._metadata))) as answers:
            async for answer in answers:
                yield dict(answer.columns)
