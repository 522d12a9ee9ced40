"""UsageService: the ledger for billing pipelines, and what rating makes of it. Quotas are not served here yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from skillcell.api.billing import Charges
from skillcell.api.edge import caller
from skillcell.api.scope import SEES_ALL_USAGE, tenant_in_question
from skillcell.api.usage_summary import summary_page
from skillcell.core.errors import invalid
from skillcell.core.types import UsageRecord
from skillcell.metering.canonical import canonical
from skillcell.metering.defects import Defect
from skillcell.metering.ledger import Ledger
from skillcell.metering.records import Head, UsageFilter
from skillcell.metering.verification import MOST_PROBLEMS, Span
from skillcell.storage.pages import decode_token, encode_token, fingerprint
from skillcell.v1 import usage_pb2 as pb
from skillcell.v1 import usage_pb2_grpc
from skillcell.wire.enums import OUTCOME
from skillcell.wire.times import duration_to_proto, range_from_proto
from skillcell.wire.usage import usage_to_proto

Context = grpc.aio.ServicerContext[Any, Any]
_BATCH = 500
_FOLLOW_SECONDS = 0.5
_DEFECTS = {
    Defect.EDITED: pb.LedgerDefect.KIND_EDITED,
    Defect.DELETED: pb.LedgerDefect.KIND_MISSING,
    Defect.REORDERED: pb.LedgerDefect.KIND_CHAIN_BROKEN,
    Defect.TRUNCATED: pb.LedgerDefect.KIND_TRUNCATED,
    Defect.HEAD_DIFFERS: pb.LedgerDefect.KIND_HEAD_DIFFERS,
    Defect.WITNESS_DIFFERS: pb.LedgerDefect.KIND_WITNESS_DIFFERS,
    Defect.TOTALS_DIFFER: pb.LedgerDefect.KIND_TOTALS_DIFFER,
    Defect.RECORD_MISSING: pb.LedgerDefect.KIND_RECORD_COUNT,
}


class UsageService(usage_pb2_grpc.UsageServiceServicer):
    """Records, sums, charges, and the proof that they are whole."""

    def __init__(self, ledger: Ledger, charges: Charges) -> None:
        self._ledger = ledger
        self._charges = charges

    async def ListUsageRecords(
        self, request: pb.ListUsageRecordsRequest, context: Context
    ) -> pb.ListUsageRecordsResponse:
        size = request.page_size or 50
        question = fingerprint("usage", request.filter.SerializeToString(deterministic=True))
        after = 0
        if request.page_token:
            after = int(decode_token(request.page_token, question, int)[0])
        found = await self._ledger.list_usage_records(caller(), after, size + 1, _filter(request.filter))
        page = found[:size]
        return pb.ListUsageRecordsResponse(
            records=[_record(record, request.include_canonical_bytes) for record in page],
            next_page_token=encode_token(question, page[-1].sequence) if len(found) > size else "",
        )

    async def StreamUsageRecords(
        self, request: pb.StreamUsageRecordsRequest, context: Context
    ) -> AsyncIterator[pb.StreamUsageRecordsResponse]:
        principal, wanted, after = caller(), _filter(request.filter), request.after_sequence
        head = await self._ledger.head()
        if after > head.sequence:
            raise invalid("after_sequence", f"is {after}; the ledger ends at {head.sequence}")
        while True:
            batch = await self._ledger.list_usage_records(principal, after, _BATCH, wanted)
            for record in batch:
                yield pb.StreamUsageRecordsResponse(record=_record(record, True))
                after = record.sequence
            if batch:
                continue
            if not request.follow:
                return
            await asyncio.sleep(_FOLLOW_SECONDS)

    async def GetUsageSummary(self, request: pb.GetUsageSummaryRequest, context: Context) -> pb.GetUsageSummaryResponse:
        return await summary_page(self._ledger, caller(), request, _filter(request.filter))

    async def GetStatement(self, request: pb.GetStatementRequest, context: Context) -> pb.GetStatementResponse:
        return await self._charges.statement(caller(), request)

    async def StreamCharges(
        self, request: pb.StreamChargesRequest, context: Context
    ) -> AsyncIterator[pb.StreamChargesResponse]:
        async for row in self._charges.rows(caller(), request):
            yield row

    async def GetPayout(self, request: pb.GetPayoutRequest, context: Context) -> pb.GetPayoutResponse:
        return await self._charges.payout(caller(), request)

    async def VerifyLedger(self, request: pb.VerifyLedgerRequest, context: Context) -> pb.VerifyLedgerResponse:
        witness = None
        if request.HasField("witness"):
            witness = Head(_sequence("witness.sequence", request.witness.sequence), request.witness.hash)
        began = time.monotonic_ns()
        span = Span(
            _sequence("from_sequence", request.from_sequence) or 1, _sequence("to_sequence", request.to_sequence)
        )
        verification = await self._ledger.verify(witness, span=span, by="VerifyLedger")
        head = pb.LedgerHead(sequence=verification.head.sequence, hash=verification.head.hash)
        return pb.VerifyLedgerResponse(
            intact=verification.whole,
            records_checked=verification.records,
            defects=[
                pb.LedgerDefect(kind=_DEFECTS[problem.defect], sequence=problem.sequence, detail=problem.detail)
                for problem in verification.problems[:MOST_PROBLEMS]
            ],
            head=head,
            duration=duration_to_proto(time.monotonic_ns() - began),
        )


def _sequence(field: str, value: int) -> int:
    """A place in the ledger; stores count in 63 bits."""
    if value >= 1 << 63:
        raise invalid(field, f"is {value}; a sequence is below 2^63")
    return value


def _record(record: UsageRecord, with_bytes: bool) -> pb.UsageRecord:
    return usage_to_proto(record, canonical(record) if with_bytes else b"")


def _filter(message: pb.UsageFilter) -> UsageFilter:
    tenant_in_question(caller(), message.tenant, SEES_ALL_USAGE)
    publisher, _, skill = message.skill.partition("/")
    if message.publisher and publisher and message.publisher != publisher:
        raise invalid("filter.publisher", f"is {message.publisher}, and filter.skill names {publisher}")
    since, until = range_from_proto(message.time, "filter.time")
    return UsageFilter(
        tenant=message.tenant,
        publisher=publisher or message.publisher,
        skill=skill,
        execution_id=message.execution_id,
        outcomes=tuple(OUTCOME.from_wire(outcome) for outcome in message.outcomes),
        labels=dict(message.labels),
        since=since,
        until=until,
    )
