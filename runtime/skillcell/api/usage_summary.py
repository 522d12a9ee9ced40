"""GetUsageSummary between the wire and the ledger's groups: dimensions, pages of one moment, sums."""

from __future__ import annotations

from collections.abc import Iterable

from skillcell.core.types import Isolation, Outcome, Principal
from skillcell.metering.ledger import Ledger
from skillcell.metering.listing import bucket_end
from skillcell.metering.records import Bucket, Grouping, UsageFilter, UsageGroup
from skillcell.storage.pages import decode_token, encode_token, fingerprint
from skillcell.v1 import types_pb2
from skillcell.v1 import usage_pb2 as pb
from skillcell.wire.enums import ISOLATION, OUTCOME
from skillcell.wire.times import instant_to_proto

_DIMENSIONS = {
    pb.USAGE_DIMENSION_TENANT: "tenant",
    pb.USAGE_DIMENSION_SKILL: "skill",
    pb.USAGE_DIMENSION_PUBLISHER: "publisher",
    pb.USAGE_DIMENSION_VERSION: "version",
    pb.USAGE_DIMENSION_ENTRYPOINT: "entrypoint",
    pb.USAGE_DIMENSION_OUTCOME: "outcome",
    pb.USAGE_DIMENSION_ISOLATION: "isolation",
}
_BUCKETS = {
    pb.TIME_BUCKET_HOUR: Bucket.HOUR,
    pb.TIME_BUCKET_DAY: Bucket.DAY,
    pb.TIME_BUCKET_MONTH: Bucket.MONTH,
}


async def summary_page(
    ledger: Ledger, principal: Principal, request: pb.GetUsageSummaryRequest, where: UsageFilter
) -> pb.GetUsageSummaryResponse:
    """One page. All pages of a request count up to the same record, which its tokens carry."""
    grouping = Grouping(
        by=_dimensions(request.group_by),
        labels=tuple(request.group_by_labels),
        bucket=_BUCKETS.get(request.bucket),
        where=where,
    )
    question = fingerprint("summary", principal.tenant, request.filter.SerializeToString(deterministic=True), grouping)
    first, as_of = 0, 0
    if request.page_token:
        first, as_of = (int(part) for part in decode_token(request.page_token, question, int, int))
    groups, as_of = await ledger.usage_summary_as_of(principal, grouping, as_of)
    size = request.page_size or 50
    more = len(groups) > first + size
    return pb.GetUsageSummaryResponse(
        groups=[_group(group, grouping.bucket) for group in groups[first : first + size]],
        next_page_token=encode_token(question, first + size, as_of) if more else "",
        as_of_sequence=as_of,
    )


def _dimensions(asked: Iterable[pb.UsageDimension.ValueType]) -> tuple[str, ...]:
    """A Skill's name means something only with its publisher's."""
    names = [_DIMENSIONS[dimension] for dimension in asked]
    return (*names, "publisher") if "skill" in names and "publisher" not in names else tuple(names)


def _group(group: UsageGroup, bucket: Bucket | None) -> pb.UsageGroup:
    key = dict(group.key)
    labels = {name.removeprefix("label:"): key.pop(name) for name in list(key) if name.startswith("label:")}
    message = pb.UsageGroup(
        tenant=key.get("tenant", ""),
        publisher=key.get("publisher", ""),
        skill=f"{key['publisher']}/{key['skill']}" if "skill" in key else "",
        version=key.get("version", ""),
        entrypoint=key.get("entrypoint", ""),
        labels=labels,
        totals=pb.UsageTotals(
            calls=group.sums.calls,
            billable_calls=group.billable_calls,
            billed_ms=group.sums.billed_ms,
            run_ns=group.run_ns,
            cpu_total_ns=group.sums.cpu_ns,
            memory_limit_byte_ns=str(group.sums.memory_reserved_byte_ns),
            egress_in_bytes=group.egress_in_bytes,
            egress_out_bytes=group.egress_out_bytes,
            input_bytes=group.input_bytes,
            output_bytes=group.sums.output_bytes,
            artifact_bytes=group.artifact_bytes,
        ),
    )
    if outcome := key.get("outcome"):
        message.outcome = OUTCOME.to_wire(Outcome(outcome))
    if isolation := key.get("isolation"):
        message.isolation = ISOLATION.to_wire(Isolation(isolation))
    if group.start is not None and bucket is not None:
        end = bucket_end(bucket, group.start)
        message.time.CopyFrom(types_pb2.TimeRange(start=instant_to_proto(group.start), end=instant_to_proto(end)))
    return message
