"""Usage: records, sums over them, and the check of the ledger's hash chain."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import TypeVar

import grpc.aio

from skillcell.client import convert
from skillcell.client.channel import ask, known_values, listen
from skillcell.client.types import Page, UsageGroup, UsageSummary, Verification
from skillcell.core.types import UsageRecord
from skillcell.v1 import usage_pb2 as pb
from skillcell.v1 import usage_pb2_grpc
from skillcell.wire import usage_from_proto

Number = TypeVar("Number")
BUCKETS = {"hour": pb.TIME_BUCKET_HOUR, "day": pb.TIME_BUCKET_DAY, "month": pb.TIME_BUCKET_MONTH}
DIMENSIONS = {
    name.removeprefix("USAGE_DIMENSION_").lower(): number for name, number in pb.UsageDimension.items() if number
}


class UsageCalls:
    """UsageService of one gateway. All raise SkillcellError."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]) -> None:
        self._stub = usage_pb2_grpc.UsageServiceStub(channel)
        self._metadata = tuple(metadata)

    async def records(
        self,
        *,
        tenant: str = "",
        publisher: str = "",
        skill: str = "",
        execution_id: str = "",
        labels: Mapping[str, str] | None = None,
        after: datetime | None = None,
        before: datetime | None = None,
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[UsageRecord]:
        """Usage records in the order of the ledger."""
        request = pb.ListUsageRecordsRequest(
            filter=_filter(skill, execution_id, labels, after, before, tenant=tenant, publisher=publisher),
            page_size=page_size,
            page_token=page_token,
        )
        answer = await ask(self._stub.ListUsageRecords(request, metadata=self._metadata))
        with known_values():
            return Page(tuple(usage_from_proto(record) for record in answer.records), answer.next_page_token)

    async def stream(
        self,
        *,
        after_sequence: int = 0,
        follow: bool = False,
        tenant: str = "",
        after: datetime | None = None,
        before: datetime | None = None,
    ) -> AsyncGenerator[UsageRecord, None]:
        """Every record after a sequence that fits; with `follow` new ones too, for ever. Times are of the end."""
        request = pb.StreamUsageRecordsRequest(
            after_sequence=after_sequence, follow=follow, filter=_filter("", "", None, after, before, tenant=tenant)
        )
        async with aclosing(listen(self._stub.StreamUsageRecords(request, metadata=self._metadata))) as answers:
            async for answer in answers:
                with known_values():
                    record = usage_from_proto(answer.record)
                yield record

    async def summary(
        self,
        *,
        by: Sequence[str] = (),
        bucket: str = "",
        tenant: str = "",
        publisher: str = "",
        skill: str = "",
        labels: Mapping[str, str] | None = None,
        after: datetime | None = None,
        before: datetime | None = None,
    ) -> UsageSummary:
        """Sums over all records that fit, every page of them.

        `by` names dimensions (`skill`, `tenant`, `outcome`…) and `label:KEY`; `bucket` is `hour`, `day`, `month` or
        empty. Raises ValueError for other names.
        """
        request = pb.GetUsageSummaryRequest(
            filter=_filter(skill, "", labels, after, before, tenant=tenant, publisher=publisher),
            group_by=[_known(DIMENSIONS, name, "dimension") for name in by if not name.startswith("label:")],
            group_by_labels=[name.removeprefix("label:") for name in by if name.startswith("label:")],
            bucket=_known(BUCKETS, bucket, "bucket") if bucket else pb.TIME_BUCKET_UNSPECIFIED,
            page_size=1000,
        )
        groups: list[UsageGroup] = []
        while True:
            answer = await ask(self._stub.GetUsageSummary(request, metadata=self._metadata))
            with known_values():
                groups.extend(convert.usage_group(group) for group in answer.groups)
            if not answer.next_page_token:
                return UsageSummary(tuple(groups), answer.as_of_sequence)
            request.page_token = answer.next_page_token

    async def verify(
        self, *, from_sequence: int = 0, to_sequence: int = 0, witness: tuple[int, bytes] | None = None
    ) -> Verification:
        """Reads the hash chain again, 0 meaning its ends; `witness` is a head seen before, which it must still hold."""
        request = pb.VerifyLedgerRequest(from_sequence=from_sequence, to_sequence=to_sequence)
        if witness is not None:
            request.witness.CopyFrom(pb.LedgerHead(sequence=witness[0], hash=witness[1]))
        return convert.verification(await ask(self._stub.VerifyLedger(request, metadata=self._metadata)))

    async def head(self) -> Verification:
        """The newest record alone, checked: its sequence and hash are a witness for later."""
        newest = await ask(self._stub.GetUsageSummary(pb.GetUsageSummaryRequest(), metadata=self._metadata))
        return await self.verify(from_sequence=newest.as_of_sequence)


def _filter(
    skill: str,
    execution_id: str,
    labels: Mapping[str, str] | None,
    after: datetime | None,
    before: datetime | None,
    *,
    tenant: str = "",
    publisher: str = "",
) -> pb.UsageFilter:
    return pb.UsageFilter(
        tenant=tenant,
        publisher=publisher,
        skill=skill,
        execution_id=execution_id,
        labels=labels or {},
        time=convert.time_range(after, before),
    )


def _known(names: Mapping[str, Number], name: str, what: str) -> Number:
    if name not in names:
        raise ValueError(f"there is no {what} {name!r}; take one of {', '.join(names)}")
    return names[name]
